/* compensated.c: the second tier of the exact profile: a sum of float64 that keeps what each addition loses. */

#include "tiers.h"

struct pair_sum {
    double value, error, size;
    int exact; /* value + error is the whole sum, nothing lost */
};

static void add_term(struct pair_sum *s, double term)
{
    double lost, lost_again;
    s->value = two_sum(s->value, term, &lost);
    s->error = two_sum(s->error, lost, &lost_again);
    s->exact &= lost_again == 0;
    s->size += magnitude(term);
}

/* Four such sums side by side: one alone waits for each addition before the next. */
typedef double four __attribute__((vector_size(32)));
typedef int64_t four_bits __attribute__((vector_size(32)));

struct four_sums {
    four value, error, size;
    four_bits lost;
};

static inline __attribute__((always_inline)) void add_fours(struct four_sums *s, int64_t count, const double *term)
{
    four value = s->value, error = s->error, size = s->size, x;
    four_bits lost = s->lost;
    for (int64_t i = 0; i < count; i += 4) {
        memcpy(&x, term + i, sizeof x);
        four sum = value + x, other = sum - value, apart = (value - (sum - other)) + (x - other);
        four sum_again = error + apart, again = sum_again - error;
        lost |= (error - (sum_again - again)) + (apart - again) != 0.0;
        value = sum, error = sum_again;
        size += (four)((four_bits)x & INT64_MAX);
    }
    *s = (struct four_sums){value, error, size, lost};
}

static void join(struct pair_sum *s, const struct four_sums *fours)
{
    for (int lane = 0; lane < 4; lane++) {
        double lost, size = s->size + fours->size[lane];
        add_term(s, fours->value[lane]);
        s->error = two_sum(s->error, fours->error[lane], &lost);
        s->exact &= lost == 0 && !fours->lost[lane];
        s->size = size;
    }
}

/* Terms made at a time, a multiple of 4; and how many are worth it. */
enum { MADE = 256, MANY = 16 };

/* Products of two float32. */
static void add_products(struct pair_sum *s, const struct vector_pair *v)
{
    struct four_sums fours = {0};
    double term[MADE];
    for (int64_t k = 0, count; k < v->length; k += count) {
        count = v->length - k < MADE ? v->length - k : MADE;
        for (int64_t i = 0; i < count; i++)
            term[i] = (double)left_of(v, k + i) * (double)number_at(v->b, v->b_format, (k + i) * v->b_step);
        for (int64_t i = count; i % 4; i++)
            term[i] = 0.0;
        add_fours(&fours, count, term);
    }
    join(s, &fours);
}

/* A product with a double is two terms. */
static void add_one_by_one(struct pair_sum *s, const struct vector_pair *v)
{
    for (int64_t k = 0; k < v->length; k++) {
        float left = left_of(v, k);
        double right = right_of(v, k), low = low_part(left, right);
        add_term(s, (double)left * high_part(right));
        if (low != 0)
            add_term(s, (double)left * low);
    }
}

static struct pair_sum sum_terms(const struct terms *terms)
{
    struct pair_sum s = {0.0, 0.0, 0.0, 1};
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        (v->b_format == REFMOE_FLOAT64 || v->length < MANY ? add_one_by_one : add_products)(&s, v);
    }
    if (terms->acc)
        add_term(&s, *terms->acc);
    if (terms->bias)
        add_term(&s, *terms->bias);
    return s;
}

/* The stored value of high + low, exactly. */
static float round_sum(double high, double low, int format)
{
    double error, sum = two_sum(high, low, &error);
    return refmoe_round(round_to_odd(sum, error), format);
}

/* |sum of errors - error| <= n^2 U^2 size, U = 2^-53; twice (n + 2)^2 also covers the roundings made here. */
int refmoe_compensated(const struct terms *terms, int format, float *out)
{
    struct pair_sum s = sum_terms(terms);
    if (!is_finite(s.value))
        return 0;
    double n = (double)count_terms(terms) + 2, low;
    double bound = s.exact ? 0.0 : n * n * 0x1p-105 * s.size;
    double high = two_sum(s.value, s.error, &low);
    float below = round_sum(high, low - bound, format), above = round_sum(high, low + bound, format);
    *out = high == 0 && s.exact ? 0.0f : below;
    return bits_of_float(below) == bits_of_float(above);
}
