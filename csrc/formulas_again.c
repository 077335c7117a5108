/* formulas_again.c: a row of softmax that float64 did not decide, once more in pairs of doubles.

   A pair is a sum high + low, high the double nearest to it. Sums, products and quotients of pairs are off by at most
   2^-100 of the result (Joldes, Muller and Popescu 2017: 3, 8 and 15 of 2^-106). With t = exp(-d) off by 2^-88 of it,
   so is their sum, and c t / S by 2^-86: what is declared, 2^-80, is many times that.  */

#include "formulas.h"

struct pair_of_doubles {
    double high, low;
};

typedef struct pair_of_doubles pair;

static pair with(double high, double low)
{
    pair y;
    y.high = two_sum(high, low, &y.low);
    return y;
}

/* Dekker's product: halves of 26 bits. */
static pair exact_product(double a, double b)
{
    double c = a * 0x1.0000002p27, d = b * 0x1.0000002p27, a1 = c - (c - a), b1 = d - (d - b), a2 = a - a1, b2 = b - b1;
    double high = a * b;
    return (pair){high, a2 * b2 - (((high - a1 * b1) - a2 * b1) - a1 * b2)};
}

static pair plus(pair a, pair b)
{
    double first, second, high = two_sum(a.high, b.high, &first), low = two_sum(a.low, b.low, &second);
    pair y = with(high, first + low);
    return with(y.high, second + y.low);
}

static pair minus(pair a) { return (pair){-a.high, -a.low}; }

static pair times(pair a, pair b)
{
    pair y = exact_product(a.high, b.high);
    return with(y.high, y.low + (a.high * b.low + a.low * b.high));
}

static pair over(pair a, pair b)
{
    double first = a.high / b.high;
    pair rest = plus(a, minus(times((pair){first, 0}, b)));
    double second = rest.high / b.high;
    rest = plus(rest, minus(times((pair){second, 0}, b)));
    return plus(with(first, second), (pair){rest.high / b.high, 0});
}

/* exp(-d), 0 <= d <= 400: 2^-88. d = k ln2 + r, k <= 578: ln2 is off by 2^-99 in the two constants, k times the first
   is exact. The series of exp(-r), |r| <= 0.347, stops short of r^21 / 21! < 2^-97. */
static pair power(pair d)
{
    const double whole = 0x1.8p52, k = (d.high * 0x1.71547652b82fep+0 + whole) - whole;
    pair r = plus(d, (pair){-k * 0x1.62e42fefa3800p-1, 0}), p = {1, 0};
    r = plus(r, minus(exact_product(k, 0x1.ef35793c76730p-45)));
    for (int n = 20; n > 0; n--)
        p = plus((pair){1, 0}, minus(over(times(r, p), (pair){n, 0})));
    double scale = power_of_two(-(int)k);
    return (pair){p.high * scale, p.low * scale};
}

/* Whether both ends of y -+ 2^-80 y round to the same number. */
static int is_decided(pair y, int format, float *out)
{
    double error = y.high * 0x1p-80;
    float above = refmoe_round(round_to_odd(y.high, y.low + error), format);
    *out = refmoe_round(round_to_odd(y.high, y.low - error), format);
    return bits_of_float(*out) == bits_of_float(above);
}

/* The powers of the used elements of a row, and their sum; false where one lies too far from the top. */
static int make_powers(const float *z, const uint8_t *used, int64_t count, pair *t, pair *sum)
{
    float top = -__builtin_inff();
    for (int64_t j = 0; j < count; j++)
        top = (!used || used[j]) && z[j] > top ? z[j] : top;
    *sum = (pair){0, 0};
    for (int64_t j = 0; j < count; j++) {
        pair d = {0, 0};
        if (used && !used[j])
            continue;
        d.high = two_sum((double)top, -(double)z[j], &d.low);
        if (d.high > 400)
            return 0;
        t[j] = power(d);
        *sum = plus(*sum, t[j]);
    }
    return 1;
}

int refmoe_softmax_again(const struct formula_call *c, int64_t n)
{
    pair t[REFMOE_LONGEST_ROW], sum;
    const float *z = c->in[0] + n * c->length;
    const uint8_t *used = c->used ? c->used + n * c->length : NULL;
    float *out = c->out[0] + n * c->length;
    if (!make_powers(z, used, c->length, t, &sum))
        return 0;
    for (int64_t j = 0; j < c->length; j++) {
        pair scaled;
        out[j] = 0;
        if (used && !used[j])
            continue;
        scaled = over(times(t[j], (pair){c->factor, 0}), sum);
        if (!is_decided(scaled, (int)(c->format - refmoe_formats), &out[j]))
            return 0;
    }
    return 1;
}
