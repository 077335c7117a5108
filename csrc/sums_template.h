/* sums_template.h: sums across vectors of float64, written once. A file that includes it defines

     TARGET   attribute that turns the instructions on for one function
     LANES    float64 lanes of a vector
     SIGNS(v) the sign bits of the lanes of a vi
     SUMS     the name of the table row made here

   Products of two float32 are exact in float64. Sums with a product are first added plainly with a bound of the error;
   where both ends of the interval round alike, that number is stored. Elements left open, and sums of numbers
   alone, which are midpoints of float32 too often, are added with the error of each addition kept (TwoSum); where the
   errors add up exactly too, the sum is rounded to odd and then to the format, which rounds as the exact value does.
   What is left goes to rounding.c, one element at a time. */

#include "sums.h"

typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vi __attribute__((vector_size(8 * LANES)));
typedef float half __attribute__((vector_size(4 * LANES)));
typedef int32_t half_int __attribute__((vector_size(4 * LANES)));
typedef float vf __attribute__((vector_size(8 * LANES)));
typedef int32_t bits __attribute__((vector_size(8 * LANES)));

#define INLINE static inline __attribute__((always_inline)) TARGET
#define SPREAD(x) ((vd){0} + (x))

INLINE vd choose(vi mask, vd yes, vd no) { return (vd)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vd size_of(vd x) { return (vd)((vi)x & INT64_MAX); }

/* `lanes` numbers of a factor from column j on; lanes beyond are 0. */
INLINE vd load(const struct factor *f, int64_t j, const int lanes)
{
    if (!f->col)
        return SPREAD((double)*f->at);
    half x = {0};
    if (lanes == LANES)
        memcpy(&x, f->at + j, sizeof x);
    else
        memcpy(&x, f->at + j, (size_t)lanes * sizeof(float));
    return __builtin_convertvector(x, vd);
}

INLINE vd term(const struct part *p, int64_t j, const int lanes)
{
    vd a = load(&p->a, j, lanes);
    return p->b.at ? a * load(&p->b, j, lanes) : a;
}

/* refmoe_round of rounding.c on a vector of finite numbers. */
INLINE half round_lanes(vd x, const int format)
{
    const struct format *f = &refmoe_formats[format];
    const vi exponent = (vi){0} + (INT64_C(0x7FF) << 52), sign = (vi){0} + INT64_MIN;
    if (format == REFMOE_FLOAT32)
        return __builtin_convertvector(x, half);
    vd power = (vd)((vi)x & exponent), least = SPREAD(f->least_normal);
    vd shift = choose(power < least, least, power) * SPREAD(f->shift);
    vd rounded = (vd)((vi)((x + shift) - shift) & ~sign);
    rounded = choose(rounded >= SPREAD(f->overflow), (vd)exponent, rounded);
    return __builtin_convertvector((vd)((vi)rounded | ((vi)x & sign)), half);
}

INLINE vi is_open(half below, half above)
{
    half_int open = ((half_int)below != (half_int)above) | (below != below);
    return __builtin_convertvector(open, vi);
}

/* Each addition errs by at most U times a partial sum, U = 2^-53, and partial sums are at most the sum of magnitudes;
   twice that covers the roundings made in computing it. One term alone is exact. */
INLINE vi plain_sum(const struct sum_row *row, int64_t j, const int lanes, const int format, half *out)
{
    vd sum = {0}, size = {0};
    for (int64_t q = 0; q < row->count; q++) {
        vd x = term(&row->part[q], j, lanes);
        sum = sum + x;
        size = size + size_of(x);
    }
    vd bound = size * SPREAD(row->count > 1 ? (double)row->count * 0x1p-52 : 0.0);
    half below = round_lanes(sum - bound, format);
    *out = below;
    return is_open(below, round_lanes(sum + bound, format));
}

INLINE vd add(vd a, vd b, vd *lost)
{
    vd sum = a + b, other = sum - a;
    *lost = (a - (sum - other)) + (b - other);
    return sum;
}

/* round_to_odd of tile.h. */
INLINE vd to_odd(vd sum, vd error)
{
    vi bits = (vi)sum, step = ((error > 0) == (sum > 0)) & 1;
    vi move = (error != 0) & ((bits & 1) == 0);
    return (vd)(bits + (move & (2 * step - 1)));
}

/* An infinite or NaN term leaves NaN in what was lost, so such sums stay open too. */
INLINE vi kept_sum(const struct sum_row *row, int64_t j, const int lanes, const int format, half *out)
{
    vd sum = {0}, carry = {0}, lost, lost_again, tail;
    vi inexact = {0};
    for (int64_t q = 0; q < row->count; q++) {
        sum = add(sum, term(&row->part[q], j, lanes), &lost);
        carry = add(carry, lost, &lost_again);
        inexact |= (vi)size_of(lost_again);
    }
    sum = add(sum, carry, &tail);
    *out = round_lanes(to_odd(sum, tail), format);
    return inexact != 0;
}

/* What stays open is summed alone. */
INLINE void sum_vector(const struct sum_row *row, int64_t j, const int lanes, const int plainly, const int format)
{
    half made;
    unsigned open = 1;
    if (plainly)
        open = SIGNS(plain_sum(row, j, lanes, format, &made));
    if (open)
        open = SIGNS(kept_sum(row, j, lanes, format, &made));
    memcpy(row->out + j, &made, (size_t)lanes * sizeof(float));
    for (int lane = 0; open && lane < lanes; lane++, open >>= 1)
        if (open & 1)
            refmoe_sum_alone(row, j + lane, format);
}

INLINE void sum_row(const struct sum_row *row, const int plainly, const int format)
{
    int64_t j = 0;
    for (; j + LANES <= row->m; j += LANES)
        sum_vector(row, j, LANES, plainly, format);
    if (j < row->m)
        sum_vector(row, j, (int)(row->m - j), plainly, format);
}

/* ---- sums that one operation in float32 makes ---- */

INLINE vf floats(const struct factor *f, int64_t j, const int lanes)
{
    vf x = {0};
    if (!f->col)
        return (vf){0} + *f->at;
    if (lanes == 2 * LANES)
        memcpy(&x, f->at + j, sizeof x);
    else
        memcpy(&x, f->at + j, (size_t)lanes * sizeof(float));
    return x;
}

/* Of one number, of two, or of one product. The processor rounds them as the law does; of zeros, a product that is not
   zero alone keeps its sign. */
INLINE void one_operation(const struct sum_row *row, int64_t j, const int lanes)
{
    const struct part *p = row->part;
    vf a = floats(&p->a, j, lanes), out;
    if (p->b.at) {
        vf b = floats(&p->b, j, lanes);
        out = a * b;
        out = (vf)((bits)out & ~(((a == 0) | (b == 0)) & (out == out)));
    } else {
        out = row->count > 1 ? a + floats(&p[1].a, j, lanes) : a;
        out = out + 0.0f;
    }
    bits none = out != out;
    out = (vf)((none & 0x7FC00000) | (~none & (bits)out));
    memcpy(row->out + j, &out, (size_t)lanes * sizeof(float));
}

INLINE int is_one_operation(const struct sum_row *row)
{
    return row->count == 1 || (row->count == 2 && !row->part[0].b.at && !row->part[1].b.at);
}

INLINE void operate_on_row(const struct sum_row *row)
{
    int64_t j = 0;
    for (; j + 2 * LANES <= row->m; j += 2 * LANES)
        one_operation(row, j, 2 * LANES);
    if (j < row->m)
        one_operation(row, j, (int)(row->m - j));
}

INLINE void sum_in(const struct sum_row *row, const int format)
{
    int plainly = row->count == 1;
    if (format == REFMOE_FLOAT32 && is_one_operation(row)) {
        operate_on_row(row);
        return;
    }
    for (int64_t q = 0; q < row->count; q++)
        plainly |= row->part[q].b.at != NULL;
    if (plainly)
        sum_row(row, 1, format);
    else
        sum_row(row, 0, format);
}

static TARGET void sum(const struct sum_row *row, int format)
{
    if (format == REFMOE_FLOAT32)
        sum_in(row, REFMOE_FLOAT32);
    else if (format == REFMOE_BF16)
        sum_in(row, REFMOE_BF16);
    else
        sum_in(row, REFMOE_FP16);
}

const struct sums SUMS = {.sum = sum};
