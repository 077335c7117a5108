/* rounding.c: the `exact` profile after the float64 sum: the rounding test's ingredients, the grid test, the
   compensated sum and the exact accumulator. Each tier decides an output or hands it on; the last always decides. */

#include "tile.h"

const struct format refmoe_formats[NUM_STORES] = {
    [REFMOE_FLOAT32] = {24, -126, 128, 0x1p-126, 0x1p128, 0x3p28},
    [REFMOE_BF16] = {8, -126, 128, 0x1p-126, 0x1p128, 0x3p44},
    [REFMOE_FP16] = {11, -14, 16, 0x1p-14, 0x1p16, 0x3p41},
};

float refmoe_canonical(float x) { return x == x ? x : float_of_bits(0x7FC00000u); }

/* Round to nearest, half to even, to a format: 3 * 2^51 quanta are added and taken away, so that float64's own rounding
   falls on the quantum of the result. Beyond the largest finite number: infinity. NaN: the canonical one. */
float refmoe_round(double x, int format)
{
    const struct format *f = &refmoe_formats[format];
    if (!is_finite(x))
        return refmoe_canonical((float)x);
    uint64_t bits = bits_of_double(x), sign = bits & (UINT64_C(1) << 63);
    double power = double_of_bits(bits & UINT64_C(0x7FF) << 52);
    double shift = (power < f->least_normal ? f->least_normal : power) * f->shift;
    double rounded = magnitude((x + shift) - shift);
    if (rounded >= f->overflow)
        rounded = double_of_bits(UINT64_C(0x7FF) << 52);
    return (float)double_of_bits(bits_of_double(rounded) | sign);
}

/* An upper bound of sqrt(squares), 0 for 0, non-finite for a non-finite argument. One Newton step lands at or above the
   root from any positive start (the mean inequality); the factor covers the roundings here and in the sum of squares,
   which err by at most 2^-53 of it a term. */
double refmoe_norm_above(double squares)
{
    if (squares == 0 || !is_finite(squares))
        return squares;
    double guess = double_of_bits((bits_of_double(squares) >> 1) + (UINT64_C(1023) << 51));
    return 0.5 * (guess + squares / guess) * (1 + 0x1p-30);
}

/* ---- grid test ---- */

/* The lowest bit of `count` numbers and their greatest magnitude, without a branch: the bit alone, as a float, has the
   exponent that is wanted. */
static void widen_run(struct grid *grid, int count, const float *x)
{
    int32_t quantum = grid->quantum;
    uint32_t largest = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = bits_of_float(x[i]) & INT32_MAX, field = bits >> 23, fraction = bits & 0x7FFFFF;
        uint32_t significand = fraction | (field ? 0x800000 : 0);
        int32_t low = (int32_t)(significand & -significand);
        int32_t at = (int32_t)(bits_of_float((float)low) >> 23) - 127 + (int32_t)(field ? field : 1) - 150;
        at = low ? at : INT32_MAX / 4;
        quantum = at < quantum ? at : quantum;
        largest = bits > largest ? bits : largest;
    }
    double size = float_of_bits(largest);
    grid->quantum = quantum;
    grid->largest = size > grid->largest || size != size ? size : grid->largest;
}

/* The same of doubles above 2^-1022. */
static void widen_doubles(struct grid *grid, int64_t count, const double *x)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = bits_of_double(x[i]), significand = (bits << 12 >> 12) | UINT64_C(1) << 52;
        int32_t at = (int32_t)(bits >> 52 & 0x7FF) - 1075 + __builtin_ctzll(significand);
        if (x[i] != 0 && at < grid->quantum)
            grid->quantum = at;
        if (magnitude(x[i]) > grid->largest || x[i] != x[i])
            grid->largest = magnitude(x[i]);
    }
}

/* What vectors take together, widened or gathered over their steps. */
enum { GRID_RUN = 256 };

static void span(const struct kernel *kernel, int64_t count, const float *x, struct grid *grid)
{
    int64_t done = kernel->span ? kernel->span(count, x, grid) : 0;
    widen_run(grid, (int)(count - done), x + done);
}

static void span_steps(const struct kernel *kernel, int64_t count, const char *v, int format, int64_t step,
                       struct grid *grid)
{
    float run[GRID_RUN];
    int64_t item = format == REFMOE_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(uint16_t);
    for (int64_t k = 0, length; k < count; k += length, v += length * step * item) {
        length = count - k < GRID_RUN ? count - k : GRID_RUN;
        if (step == 1)
            kernel->widen[format](length, v, run);
        for (int64_t i = 0; i < length && step != 1; i++)
            run[i] = number_at(v, format, i * step);
        span(kernel, length, run, grid);
    }
}

/* The grid of the first (second = 0) or second factors of all pairs together. */
struct grid refmoe_grid(const struct kernel *kernel, int count, const struct vector_pair *pair, int second)
{
    struct grid grid = {1, INT32_MAX / 4, 0.0};
    for (int p = 0; p < count; p++) {
        const struct vector_pair *v = &pair[p];
        const char *x = second ? v->b : v->a;
        int format = second ? v->b_format : v->a_format;
        int64_t step = second ? v->b_step : v->a_step;
        if (format == REFMOE_FLOAT64) {
            widen_doubles(&grid, v->length, (const double *)v->b);
            continue;
        }
        span_steps(kernel, v->length, x, format, step, &grid);
    }
    return grid;
}

static float left_of(const struct vector_pair *v, int64_t k) { return number_at(v->a, v->a_format, k * v->a_step); }
static double right_of(const struct vector_pair *v, int64_t k)
{
    return v->b_format == REFMOE_FLOAT64 ? ((const double *)v->b)[k] : number_at(v->b, v->b_format, k * v->b_step);
}

/* What is left of a factor after its first 29 bits; nothing beside an infinity, which has met these. */
static double low_part(float left, double right)
{
    return is_finite(left) && is_finite(right) ? right - high_part(right) : 0.0;
}

/* A double times a float32 is two terms. */
static int64_t count_terms(const struct terms *terms)
{
    int64_t count = (terms->bias != NULL) + (terms->acc != NULL);
    for (int p = 0; p < terms->pairs; p++)
        count += terms->pair[p].length * (terms->pair[p].b_format == REFMOE_FLOAT64 ? 2 : 1);
    return count;
}

/* True if every partial sum, in any order, is a multiple of 2^q below 2^(q+53), so that float64 holds it. The
   factor of the left side outweighs the roundings made in computing it. */
static int on_grid(const struct terms *terms, const struct grid *row, const struct grid *col)
{
    struct grid rest = {1, row->quantum + col->quantum, 0.0};
    double sum = (double)count_terms(terms) * row->largest * col->largest;
    if (row->largest == 0 || col->largest == 0)
        rest.quantum = INT32_MAX / 4;
    if (terms->bias)
        widen_run(&rest, 1, terms->bias), sum += magnitude(*terms->bias);
    if (terms->acc)
        widen_run(&rest, 1, terms->acc), sum += magnitude(*terms->acc);
    return rest.quantum > 512 || sum * (1 + 0x1p-40) < power_of_two(rest.quantum + 53);
}

/* ---- compensated sum ---- */

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

static struct pair_sum sum_terms(const struct terms *terms)
{
    struct pair_sum s = {0.0, 0.0, 0.0, 1};
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        for (int64_t k = 0; k < v->length; k++) {
            float left = left_of(v, k);
            double right = right_of(v, k), low = low_part(left, right);
            add_term(&s, (double)left * high_part(right));
            if (low != 0)
                add_term(&s, (double)left * low);
        }
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
static int compensated(const struct terms *terms, int format, float *out)
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

/* ---- exact accumulator: an integer of 960 bits in two's complement, in units of 2^-480 ---- */

/* Products of float32 are multiples of 2^-298 below 2^256; a code with two scales may take 2^-182 more, and 2^144. */
enum { LIMBS = 30, UNIT = 480 };

static void decompose(float x, uint64_t *significand, int *exponent)
{
    uint32_t bits = bits_of_float(x), field = bits >> 23 & 0xFF;
    *significand = field ? (bits & 0x7FFFFF) | 0x800000 : bits & 0x7FFFFF;
    *exponent = (int)(field ? field : 1) - 150;
}

/* Of a double of at most 29 bits, zero or above 2^-1022. */
static void decompose_part(double x, uint64_t *significand, int *exponent)
{
    uint64_t bits = bits_of_double(x);
    *significand = magnitude(x) == 0 ? 0 : (bits >> 24 & 0xFFFFFFF) | 0x10000000;
    *exponent = *significand ? (int)(bits >> 52 & 0x7FF) - 1075 + 24 : 0;
}

static void add_product(uint32_t *limb, float a, double b)
{
    uint64_t ma, mb;
    int ea, eb;
    decompose(a, &ma, &ea);
    decompose_part(b, &mb, &eb);
    if (ma == 0 || mb == 0)
        return;
    int zeros = __builtin_ctzll(mb); /* whose places may be below the accumulator's unit */
    mb >>= zeros, eb += zeros;
    int shift = ea + eb + UNIT, at = shift / 32, negative = (bits_of_float(a) >> 31) ^ (int)(bits_of_double(b) >> 63);
    uint64_t low = (ma * mb & UINT32_MAX) << shift % 32, high = (ma * mb >> 32) << shift % 32;
    const int64_t part[3] = {low & UINT32_MAX, (int64_t)((low >> 32) + (high & UINT32_MAX)), (int64_t)(high >> 32)};
    int64_t carry = 0;
    for (int i = 0; at + i < LIMBS && (i < 3 || carry); i++) {
        int64_t add = i < 3 ? part[i] : 0;
        carry += (int64_t)limb[at + i] + (negative ? -add : add);
        limb[at + i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static void negate(uint32_t *limb)
{
    uint64_t carry = 1;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint32_t)~limb[i];
        limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static int bit_at(const uint32_t *limb, int at) { return at >= 0 && (limb[at / 32] >> at % 32 & 1); }

static int top_bit(const uint32_t *limb)
{
    int at = 32 * LIMBS - 1;
    while (at >= 0 && !bit_at(limb, at))
        at--;
    return at;
}

/* Round the integer to a format, half to even, by looking at its bits. */
static float round_limbs(uint32_t *limb, int format)
{
    const struct format *f = &refmoe_formats[format];
    int negative = limb[LIMBS - 1] >> 31, sticky = 0;
    if (negative)
        negate(limb);
    int top = top_bit(limb), normal = top - UNIT > f->least ? top - UNIT : f->least;
    int quantum = normal - f->precision + 1, last = quantum + UNIT;
    if (top < 0)
        return 0.0f;
    uint64_t kept = 0;
    for (int at = top; at >= last; at--)
        kept = 2 * kept + (uint64_t)bit_at(limb, at);
    for (int at = last - 2; at >= 0 && !sticky; at--)
        sticky = bit_at(limb, at);
    kept += bit_at(limb, last - 1) && (sticky || (kept & 1));
    double value = (double)kept * power_of_two(quantum);
    return refmoe_round(negative ? -value : value, format);
}

static int nonfinite(const struct terms *terms, float *out)
{
    double special = 0.0;
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        for (int64_t k = 0; k < v->length; k++) {
            double product = (double)left_of(v, k) * right_of(v, k);
            if (!is_finite(product))
                special += product;
        }
    }
    if (terms->acc && !is_finite(*terms->acc))
        special += *terms->acc;
    if (terms->bias && !is_finite(*terms->bias))
        special += *terms->bias;
    *out = refmoe_canonical((float)special);
    return !is_finite(special);
}

static float exact(const struct terms *terms, int format)
{
    uint32_t limb[LIMBS] = {0};
    float out;
    if (nonfinite(terms, &out))
        return out;
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        for (int64_t k = 0; k < v->length; k++) {
            double right = right_of(v, k);
            add_product(limb, left_of(v, k), high_part(right));
            add_product(limb, left_of(v, k), right - high_part(right));
        }
    }
    if (terms->acc)
        add_product(limb, *terms->acc, 1.0);
    if (terms->bias)
        add_product(limb, *terms->bias, 1.0);
    return round_limbs(limb, format);
}

/* An output the rounding test left open, or one that was sent here by force. */
float refmoe_resolve(const struct terms *terms, double value, const struct grid *row, const struct grid *col,
                     int format, int force, refmoe_report *report)
{
    float out;
    if (force == REFMOE_FORCE_NOTHING && !is_finite(value)) {
        report->rounding_test++; /* an infinite or NaN sum came from such an operand and is the answer */
        return refmoe_canonical((float)value);
    }
    if (force == REFMOE_FORCE_NOTHING && on_grid(terms, row, col)) {
        report->grid++;
        return refmoe_round(value, format);
    }
    if (force != REFMOE_FORCE_EXACT && compensated(terms, format, &out)) {
        report->compensated++;
        return out;
    }
    report->exact++;
    return exact(terms, format);
}
