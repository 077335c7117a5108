/* tile_template.h: the vector tiles, written once. A stub defines the instruction set and includes this file:

     TARGET       attribute that turns the instructions on for one function
     LANES        float64 lanes of a vector
     ROWS         rows of a tile, at most MAX_TILE_ROWS; rows * 2 accumulators, 2 columns and 1 scalar fit the registers
     FMA64(a,b,c), FMA32(a,b,c)   a * b + c in one rounding, on vectors of doubles, of floats
     SPREAD64(x), SPREAD32(x)     a vector of one number
     WIDEN(p)     LANES floats at p as doubles;  NARROW(v)  doubles to floats;  SIGNS(v)  sign bits of LANES floats

   A tile is two vectors wide. Every loop over rows has a constant bound, so that the accumulators stay in registers;
   `rows_*` is compiled once for each number of rows.                                                               */

#include "tile.h"

_Static_assert(2 * LANES * sizeof(float) % RUN_UNIT == 0, "the narrowest columns, of exact, are whole runs");

typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vi __attribute__((vector_size(8 * LANES)));
typedef float vf __attribute__((vector_size(8 * LANES)));
typedef float half __attribute__((vector_size(4 * LANES)));
typedef int32_t half_int __attribute__((vector_size(4 * LANES)));
typedef double vd_memory __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef float vf_memory __attribute__((vector_size(8 * LANES), aligned(4), may_alias));
typedef float half_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline)) TARGET
#define LOAD_D(p) ((vd) * (const vd_memory *)(p))
#define LOAD_F(p) ((vf) * (const vf_memory *)(p))

/* The next tile's columns of the same row: a weight read once arrives while this tile computes. */
#define FETCH(b, bytes) __builtin_prefetch((const char *)(b) + (bytes), 0, 2)

INLINE void rows_exact(const int rows, int64_t length, const double *a, const float *b, int64_t ldb, double *acc)
{
    vd sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        sum[i][0] = LOAD_D(acc + 2 * LANES * i), sum[i][1] = LOAD_D(acc + 2 * LANES * i + LANES);
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb) {
        vd left = WIDEN(b), right = WIDEN(b + LANES);
        FETCH(b, 8 * LANES);
        for (int i = 0; i < rows; i++) {
            vd x = SPREAD64(a[i]);
            sum[i][0] = FMA64(x, left, sum[i][0]);
            sum[i][1] = FMA64(x, right, sum[i][1]);
        }
    }
    for (int i = 0; i < rows; i++) {
        *(vd_memory *)(acc + 2 * LANES * i) = sum[i][0];
        *(vd_memory *)(acc + 2 * LANES * i + LANES) = sum[i][1];
    }
}

INLINE void rows_chain(const int rows, int64_t length, const float *a, const float *b, int64_t ldb, float *acc)
{
    vf sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        sum[i][0] = LOAD_F(acc + 4 * LANES * i), sum[i][1] = LOAD_F(acc + 4 * LANES * i + 2 * LANES);
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb) {
        vf left = LOAD_F(b), right = LOAD_F(b + 2 * LANES);
        FETCH(b, 16 * LANES);
        for (int i = 0; i < rows; i++) {
            vf x = SPREAD32(a[i]);
            sum[i][0] = FMA32(x, left, sum[i][0]);
            sum[i][1] = FMA32(x, right, sum[i][1]);
        }
    }
    for (int i = 0; i < rows; i++) {
        *(vf_memory *)(acc + 4 * LANES * i) = sum[i][0];
        *(vf_memory *)(acc + 4 * LANES * i + 2 * LANES) = sum[i][1];
    }
}

/* Two roundings a step: -ffp-contract=off keeps the compiler from fusing them. */
INLINE void rows_unfused(const int rows, int64_t length, const double *a, const double *b, int64_t ldb, double *acc)
{
    vd sum[ROWS][2];
    for (int i = 0; i < rows; i++)
        sum[i][0] = LOAD_D(acc + 2 * LANES * i), sum[i][1] = LOAD_D(acc + 2 * LANES * i + LANES);
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb) {
        vd left = LOAD_D(b), right = LOAD_D(b + LANES);
        FETCH(b, 16 * LANES);
        for (int i = 0; i < rows; i++) {
            vd x = SPREAD64(a[i]);
            sum[i][0] = sum[i][0] + x * left;
            sum[i][1] = sum[i][1] + x * right;
        }
    }
    for (int i = 0; i < rows; i++) {
        *(vd_memory *)(acc + 2 * LANES * i) = sum[i][0];
        *(vd_memory *)(acc + 2 * LANES * i + LANES) = sum[i][1];
    }
}

#define CASE(inner, count)                                                                                            \
    case count:                                                                                                       \
        inner(count <= ROWS ? count : ROWS, length, a, b, ldb, acc);                                                  \
        return;
#define EACH_COUNT(inner)                                                                                             \
    switch (rows) {                                                                                                   \
        CASE(inner, 1) CASE(inner, 2) CASE(inner, 3) CASE(inner, 4)                                                   \
        CASE(inner, 5) CASE(inner, 6) CASE(inner, 7) CASE(inner, 8)                                                   \
    }

static TARGET void multiply_exact(int rows, int64_t length, const void *a, const void *b, int64_t ldb, void *acc)
{
    EACH_COUNT(rows_exact)
}

static TARGET void multiply_chain(int rows, int64_t length, const void *a, const void *b, int64_t ldb, void *acc)
{
    EACH_COUNT(rows_chain)
}

static TARGET void multiply_unfused(int rows, int64_t length, const void *a, const void *b, int64_t ldb, void *acc)
{
    EACH_COUNT(rows_unfused)
}

static TARGET void squares(int64_t length, const float *b, int64_t ldb, double *sum)
{
    vd left = {0}, right = {0};
    for (int64_t k = 0; k < length; k++, b += ldb) {
        vd l = WIDEN(b), r = WIDEN(b + LANES);
        left = FMA64(l, l, left);
        right = FMA64(r, r, right);
    }
    *(vd_memory *)sum = left;
    *(vd_memory *)(sum + LANES) = right;
}

INLINE vd choose(vi mask, vd yes, vd no) { return (vd)((mask & (vi)yes) | (~mask & (vi)no)); }

/* refmoe_round of rounding.c on a vector; infinities become NaN, which the test leaves open. */
INLINE half round_narrow(vd x, const struct format *f)
{
    const vi exponent = (vi){0} + (INT64_C(0x7FF) << 52), sign = (vi){0} + INT64_MIN;
    vd power = (vd)((vi)x & exponent), least = SPREAD64(f->least_normal);
    vd shift = choose(power < least, least, power) * SPREAD64(f->shift);
    vd rounded = (vd)((vi)((x + shift) - shift) & ~sign);
    rounded = choose(rounded >= SPREAD64(f->overflow), (vd)exponent, rounded);
    return NARROW((vd)((vi)rounded | ((vi)x & sign)));
}

INLINE half round_lanes(vd x, const int narrow, const struct format *f)
{
    return narrow ? round_narrow(x, f) : NARROW(x);
}

INLINE uint32_t test_lanes(const double *value, vd bound, const int narrow, const struct format *f, float *out)
{
    vd x = LOAD_D(value);
    half below = round_lanes(x - bound, narrow, f), above = round_lanes(x + bound, narrow, f);
    half_int open = ((half_int)below != (half_int)above) | (below != below);
    *(half_memory *)out = below;
    return (uint32_t)SIGNS((half)open);
}

INLINE void test_block(int rows, const double *value, const double *row_bound, const double *col_norm,
                       const double *extra, const int narrow, const struct format *f, float *out, uint32_t *undecided)
{
    for (int i = 0; i < rows; i++) {
        int at = 2 * LANES * i;
        vd left = SPREAD64(row_bound[i]) * LOAD_D(col_norm), right = SPREAD64(row_bound[i]) * LOAD_D(col_norm + LANES);
        if (extra)
            left += LOAD_D(extra + at), right += LOAD_D(extra + at + LANES);
        undecided[i] = test_lanes(value + at, left, narrow, f, out + at)
                       | test_lanes(value + at + LANES, right, narrow, f, out + at + LANES) << LANES;
    }
}

static TARGET void test(int rows, const double *value, const double *row_bound, const double *col_norm,
                        const double *extra, int format, float *out, uint32_t *undecided)
{
    const struct format *f = &refmoe_formats[format];
    if (format == REFMOE_FLOAT32)
        test_block(rows, value, row_bound, col_norm, extra, 0, f, out, undecided);
    else
        test_block(rows, value, row_bound, col_norm, extra, 1, f, out, undecided);
}

#define VECTOR_TILES                                                                                                  \
    {                                                                                                                 \
        [REFMOE_EXACT] = {ROWS, 2 * LANES, multiply_exact}, [REFMOE_CHAIN] = {ROWS, 4 * LANES, multiply_chain},       \
        [REFMOE_UNFUSED] = {ROWS, 2 * LANES, multiply_unfused}                                                        \
    }
