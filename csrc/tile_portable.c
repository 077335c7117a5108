/* tile_portable.c: the definition of a tile, in C that any processor runs. Vector tiles must equal it in every bit. */

#include "tile.h"

enum { ROWS = 4, COLS = 8 };
_Static_assert(COLS * sizeof(float) % RUN_UNIT == 0, "columns are whole runs");

/* Products of two float32 are exact in float64. */
static void multiply_exact(int rows, int64_t length, const void *a_, const void *b_, int64_t ldb, void *acc_)
{
    const double *a = a_;
    const float *b = b_;
    double *acc = acc_;
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLS; j++)
                acc[i * COLS + j] += a[i] * (double)b[j];
}

/* fma(a, b, c) in float32. Rounding the float64 sum once more is right unless it lies on a midpoint of two float32 or
   below the normal range; those few are first rounded to odd. */
static float fused(float a, float b, float c)
{
    double product = (double)a * (double)b, sum = product + (double)c, error;
    uint64_t bits = bits_of_double(sum);
    if ((bits & 0x1FFFFFFF) != 0x10000000 && magnitude(sum) >= 0x1p-126)
        return (float)sum;
    if (!is_finite(sum))
        return (float)sum;
    two_sum(product, (double)c, &error);
    return (float)round_to_odd(sum, error);
}

static void multiply_chain(int rows, int64_t length, const void *a_, const void *b_, int64_t ldb, void *acc_)
{
    const float *a = a_, *b = b_;
    float *acc = acc_;
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLS; j++)
                acc[i * COLS + j] = fused(a[i], b[j], acc[i * COLS + j]);
}

static void multiply_unfused(int rows, int64_t length, const void *a_, const void *b_, int64_t ldb, void *acc_)
{
    const double *a = a_, *b = b_;
    double *acc = acc_;
    for (int64_t k = 0; k < length; k++, a += rows, b += ldb)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLS; j++)
                acc[i * COLS + j] += a[i] * b[j];
}

static void squares(int64_t length, const float *b, int64_t ldb, double *sum)
{
    for (int j = 0; j < COLS; j++)
        sum[j] = 0.0;
    for (int64_t k = 0; k < length; k++, b += ldb)
        for (int j = 0; j < COLS; j++)
            sum[j] += (double)b[j] * (double)b[j];
}

static void test(int rows, const double *value, const double *row_bound, const double *col_norm, const double *extra,
                 int format, float *out, uint32_t *undecided)
{
    for (int i = 0; i < rows; i++) {
        undecided[i] = 0;
        for (int j = 0; j < COLS; j++) {
            int at = i * COLS + j;
            double bound = row_bound[i] * col_norm[j] + (extra ? extra[at] : 0.0);
            float below = refmoe_round(value[at] - bound, format), above = refmoe_round(value[at] + bound, format);
            uint32_t open = bits_of_float(below) != bits_of_float(above) || below != below;
            undecided[i] |= open << j;
            out[at] = below;
        }
    }
}

static int runs_here(void) { return 1; }

const struct kernel refmoe_portable = {
    .name = "portable",
    .needs = "any processor",
    .runs_here = runs_here,
    .tile = {[REFMOE_EXACT] = {ROWS, COLS, multiply_exact},
             [REFMOE_CHAIN] = {ROWS, COLS, multiply_chain},
             [REFMOE_UNFUSED] = {ROWS, COLS, multiply_unfused}},
    .squares = squares,
    .test = test,
};
