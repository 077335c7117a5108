/* few_template.h: the functions of few.h, written once. A stub defines the instruction set and includes this file:

     TARGET       attribute that turns the instructions on for one function
     LANES        floats of a vector; half as many doubles
     FMA64(a,b,c), FMA32(a,b,c), SPREAD32(x), WIDEN(p)   as in tile_template.h
     SUMS         accumulators that the registers hold beside weights and x
     TURN(v)      statement: transposes the LANES vectors v[0] .. of floats
     MAX32(a,b)   the greater, lane by lane, of unsigned 32-bit integers
     ADD_ALL(v)   the sum of a vector of doubles, in any order
     MAX_ALL(v)   the greatest of a vector of unsigned 32-bit integers                                               */

#include "tile.h"

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef float vf_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double vd_memory __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef uint32_t vu_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline)) TARGET
#define LINE 64

enum { MOST_TOGETHER = 4 };

/* ---- chain: lanes are outputs, k ascends ---- */

/* `count` k of every output: their weights are turned in registers, and every row of x meets them there. */
INLINE void chain_step(const int rows, const int count, const char *const *w, int64_t at, const float *x, vf *sum)
{
    vf turned[LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = (vf) * (const vf_memory *)(w[j] + at);
    TURN(turned);
    for (int k = 0; k < count; k++, x += rows)
        for (int i = 0; i < rows; i++)
            sum[i] = FMA32(turned[k], SPREAD32(x[i]), sum[i]);
}

/* The last k: fewer than a vector has. No sum may meet the padding. */
INLINE void chain_rest(const int rows, const int count, const char *const *w, int64_t at, const float *x, vf *sum)
{
    float rest[LANES][LANES] = {{0}};
    const char *row[LANES];
    for (int j = 0; j < LANES; j++) {
        memcpy(rest[j], w[j] + at, (size_t)count * sizeof(float));
        row[j] = (const char *)rest[j];
    }
    vf turned[LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = (vf) * (const vf_memory *)row[j];
    TURN(turned);
    for (int k = 0; k < LANES; k++)
        for (int i = 0; i < rows && k < count; i++)
            sum[i] = FMA32(turned[k], SPREAD32(x[k * rows + i]), sum[i]);
}

INLINE void chain_rows(const int rows, const struct few_block *b)
{
    const char *w[LANES], *ahead = b->ahead;
    const float *x = b->x;
    float *value = b->value;
    vf sum[MAX_FEW_ROWS];
    int64_t k = 0;
    for (int j = 0; j < LANES; j++)
        w[j] = b->w + (j < b->cols ? j : b->cols - 1) * b->step;
    for (int i = 0; i < rows; i++)
        sum[i] = *(const vf_memory *)(value + i * LANES);
    for (; k + LANES <= b->length; k += LANES, x += LANES * rows, ahead += LANES * LANES * 4) {
        for (int j = 0; j < LANES * LANES * 4 / LINE; j++)
            __builtin_prefetch(ahead + j * LINE, 0, 2);
        chain_step(rows, LANES, w, 4 * k, x, sum);
    }
    if (k < b->length)
        chain_rest(rows, (int)(b->length - k), w, 4 * k, x, sum);
    for (int i = 0; i < rows; i++)
        *(vf_memory *)(value + i * LANES) = sum[i];
}

/* ---- exact: lanes are k, some outputs at a time ---- */

/* More outputs at a time meet a number of x that was loaded once, but read the weights less in order. */
#define TOGETHER(rows) ((rows) == 1 ? 1 : (rows) <= SUMS / 4 ? 4 : 2)

/* Sums of one output and row: of both halves of a vector where registers allow it, else of both together. */
#define SECOND(rows, many) ((rows) * (many) <= SUMS / 2)

/* One vector of weights of each of `many` outputs, `step` bytes apart, and the rows of x. */
INLINE void exact_step(const int rows, const int many, const char *w, int64_t step, const double *x,
                       vd (*sum)[MOST_TOGETHER][2], vu *top)
{
    vd left[MOST_TOGETHER], right[MOST_TOGETHER];
    for (int j = 0; j < many; j++) {
        vu bits = *(const vu_memory *)(w + j * step) & 0x7FFFFFFF;
        top[j] = MAX32(top[j], bits);
        left[j] = WIDEN((const float *)(w + j * step)), right[j] = WIDEN((const float *)(w + j * step) + LANES / 2);
    }
    for (int i = 0; i < rows; i++, x += LANES) {
        vd first = *(const vd_memory *)x, second = *(const vd_memory *)(x + LANES / 2);
        for (int j = 0; j < many; j++)
            sum[i][j][0] = FMA64(left[j], first, sum[i][j][0]);
        for (int j = 0, half = SECOND(rows, many); j < many; j++)
            sum[i][j][half] = FMA64(right[j], second, sum[i][j][half]);
    }
}

INLINE void exact_outputs(const int rows, const int many, const struct few_block *b, int first)
{
    const char *w = b->w + first * b->step;
    const double *x = b->x;
    vd sum[MAX_FEW_ROWS][MOST_TOGETHER][2] = {{{{0}}}};
    vu top[MOST_TOGETHER] = {{0}};
    int64_t k = 0;
    for (; k + LANES <= b->length; k += LANES, w += 4 * LANES, x += LANES * rows)
        exact_step(rows, many, w, b->step, x, sum, top);
    if (k < b->length) {
        float rest[MOST_TOGETHER][LANES] = {{0}};
        for (int j = 0; j < many; j++)
            memcpy(rest[j], w + j * b->step, (size_t)(b->length - k) * sizeof(float));
        exact_step(rows, many, (const char *)rest, sizeof rest[0], x, sum, top);
    }
    for (int j = 0; j < many; j++) {
        for (int i = 0; i < rows; i++)
            ((double *)b->value)[i * LANES + first + j] = ADD_ALL(sum[i][j][0] + sum[i][j][1]);
        b->largest[first + j] = float_of_bits(MAX_ALL(top[j]));
    }
}

INLINE void exact_rows(const int rows, const struct few_block *b)
{
    int j = 0;
    for (; j + TOGETHER(rows) <= b->cols; j += TOGETHER(rows))
        exact_outputs(rows, TOGETHER(rows), b, j);
    for (; j < b->cols; j++)
        exact_outputs(rows, 1, b, j);
}

#define EACH_ROWS(use) use(1) use(2) use(3) use(4) use(5) use(6) use(7) use(8)
#define FUNCTIONS(count)                                                                                              \
    static TARGET void chain_##count(const struct few_block *b) { chain_rows(count, b); }                             \
    static TARGET void exact_##count(const struct few_block *b) { exact_rows(count, b); }
EACH_ROWS(FUNCTIONS)

#define FEW_FUNCTIONS                                                                                                 \
    .chain = {NULL, chain_1, chain_2, chain_3, chain_4, chain_5, chain_6, chain_7, chain_8},                          \
    .exact = {NULL, exact_1, exact_2, exact_3, exact_4, exact_5, exact_6, exact_7, exact_8}
