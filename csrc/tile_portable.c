/* tile_portable.c: the definition of a tile, in C that any processor runs. Vector tiles must equal it in every bit. */

#include "sums.h"

enum { ROWS = 4, COLS = 8 };
_Static_assert(COLS * sizeof(float) % RUN_UNIT == 0, "columns are whole runs");

/* Products of two float32 are exact in float64. */
static void multiply_exact(int rows, int64_t length, const void *a_, const void *b_, int64_t ldb, void *acc_)
{
    const double *a = a_;
    const float *b = b_;
    double *acc = acc_;
    for (int64_t k = 0; k < length; k++, a += ROWS, b += ldb)
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
    for (int64_t k = 0; k < length; k++, a += ROWS, b += ldb)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLS; j++)
                acc[i * COLS + j] = fused(a[i], b[j], acc[i * COLS + j]);
}

static void multiply_unfused(int rows, int64_t length, const void *a_, const void *b_, int64_t ldb, void *acc_)
{
    const double *a = a_, *b = b_;
    double *acc = acc_;
    for (int64_t k = 0; k < length; k++, a += ROWS, b += ldb)
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < COLS; j++)
                acc[i * COLS + j] += a[i] * b[j];
}

/* ---- rows of x across the lanes ---- */

#define ALONG(type, left, i, k) (((const type *)(left))[(i) * (LEFT_PITCH / (int64_t)sizeof(type)) + (k)])
#define ACROSS(type, left, i, k) (((const type *)(left))[(k) * ROWS + (i)])

#define LANE_TILE(name, weight, type, at, step_of)                                                                    \
    static void name(int rows, const struct lane_run *run)                                                            \
    {                                                                                                                 \
        const type *right = run->right, *from = run->from;                                                            \
        type *to = run->to;                                                                                           \
        for (int i = 0; i < rows; i++)                                                                                \
            for (int j = 0; j < COLS; j++) {                                                                          \
                type sum = from ? from[i * run->from_row + j] : 0;                                                    \
                for (int64_t k = 0; k < run->length; k++)                                                             \
                    sum = step_of(at(weight, run->left, i, k), right[k * run->right_step + j], sum);                  \
                sum = run->bias ? sum + (type)run->bias[j] : sum;                                                     \
                to[i * run->to_row + j] = run->ends ? (type)refmoe_canonical((float)sum) : sum;                       \
            }                                                                                                         \
    }
#define ADD_EXACT(a, b, c) ((c) + (a) * (b))
#define FUSED_WIDE(a, b, c) refmoe_fused_wide(b, a, c)

LANE_TILE(exact_along, double, double, ALONG, ADD_EXACT)
LANE_TILE(exact_across, double, double, ACROSS, ADD_EXACT)
LANE_TILE(chain_along, float, float, ALONG, fused)
LANE_TILE(chain_across, float, float, ACROSS, fused)
LANE_TILE(wide_along, double, float, ALONG, FUSED_WIDE)
LANE_TILE(wide_across, double, float, ACROSS, FUSED_WIDE)

#define TARGET
#define INLINE static inline
#define LANE_ROWS ROWS
#include "codes_template.h"

#define COPIES(name, type, form, item, number)                                                                        \
    static void copy_along_##name##_##form(int rows, int64_t length, const void *w, int64_t step, void *left,         \
                                           double *squares)                                                           \
    {                                                                                                                 \
        for (int i = 0; i < rows; i++)                                                                                \
            for (int64_t k = 0; k < length; k++) {                                                                    \
                double value = number(((const item *)w)[i * step + k]);                                               \
                ((type *)((char *)left + i * LEFT_PITCH))[k] = (type)value;                                           \
                if (squares)                                                                                          \
                    squares[i] += value * value;                                                                      \
            }                                                                                                         \
    }                                                                                                                 \
    static void copy_across_##name##_##form(int cols, int64_t length, const void *w, int64_t step, void *left,        \
                                            double *squares)                                                          \
    {                                                                                                                 \
        for (int64_t k = 0; k < length; k++)                                                                          \
            for (int j = 0; j < cols; j++) {                                                                          \
                double value = number(((const item *)w)[k * step + j]);                                               \
                ((type *)left)[(j / ROWS * length + k) * ROWS + j % ROWS] = (type)value;                              \
                squares[j] += value * value;                                                                          \
            }                                                                                                         \
    }                                                                                                                 \
    static void copy_panels_##name##_##form(int count, int64_t length, const void *w, int64_t step, void *right,      \
                                            int64_t apart, double *squares)                                           \
    {                                                                                                                 \
        for (int64_t k = 0; k < length; k++)                                                                          \
            for (int j = 0; j < count * COLS; j++) {                                                                  \
                double value = number(((const item *)w)[k * step + j]);                                               \
                ((type *)((char *)right + j / COLS * apart))[k * COLS + j % COLS] = (type)value;                      \
                if (squares)                                                                                          \
                    squares[j] += value * value;                                                                      \
            }                                                                                                         \
    }
#define READING(form, item, number)                                                                                   \
    COPIES(exact, double, form, item, number)                                                                         \
    COPIES(chain, float, form, item, number)                                                                          \
    static void widen_##form(int64_t count, const void *from, float *to)                                              \
    {                                                                                                                 \
        for (int64_t k = 0; k < count; k++)                                                                           \
            to[k] = number(((const item *)from)[k]);                                                                  \
    }

READING(float32, float, ITSELF)
READING(bf16, uint16_t, float_of_bf16)
READING(fp16, uint16_t, float_of_fp16)

static void norms(int count, double *squares)
{
    for (int i = 0; i < count; i++)
        squares[i] = refmoe_norm_above(squares[i]);
}

static void grow(int rows, const double *value, double factor, const double *row_norm, const double *col_norm,
                 double *error)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < COLS; j++)
            error[i * COLS + j] += factor * (magnitude(value[i * COLS + j]) + row_norm[i] * col_norm[j]);
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

static void settle(int rows, int pitch, const float *value, const float *row_bias, const float *col_bias, int format,
                   float *result)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < pitch; j++) {
            float sum = value[i * pitch + j];
            sum = row_bias ? sum + row_bias[i] : col_bias ? sum + col_bias[j] : sum;
            result[i * pitch + j] = format == REFMOE_FLOAT32 ? refmoe_canonical(sum)
                                                             : refmoe_round((double)sum, format);
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
    .lanes = {[REFMOE_EXACT] = {ROWS, 1, {COLS}, {exact_along}, {exact_across}},
              [REFMOE_CHAIN] = {ROWS, 1, {COLS}, {chain_along}, {chain_across}},
              [REFMOE_WIDE] = {ROWS, 1, {COLS}, {wide_along}, {wide_across}}},
    .copy_codes = copy_codes,
    .copy_along = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_along_exact),
                   [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_along_chain)},
    .copy_across = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_across_exact),
                    [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_across_chain)},
    .copy_panels = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_panels_exact),
                    [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_panels_chain)},
    .widen = OF_EACH_FORMAT(widen),
    .norms = norms,
    .grow = grow,
    .squares = squares,
    .test = test,
    .settle = settle,
    .sums = &refmoe_sums_portable,
};
