/* few_template.h: the functions of few.h, written once. A stub defines the instruction set and includes this file:

     TARGET       attribute that turns the instructions on for one function
     CHAIN_ROWS   most rows of x in a chain, 4 or 8
     LANES        floats of a vector; half as many doubles
     SUMS         accumulators that the registers hold beside weights and x
     FMA64(a,b,c), FMA32(a,b,c), SPREAD32(x)   as in tile_template.h
     DOUBLES(v)   half a vector of floats as doubles
     FLOATS_FP16(p), HALF_FP16(p)   LANES codes of fp16 at p, half as many, as floats
     WIDEN_BF16(p)   LANES / 2 codes of bf16 at p as doubles: numbers times 2^-BF16_EXPONENT
     APART_ROWS, struct apart, TAKE_APART(p), PART_BF16(apart, h)   the same faster, with more registers, for products
                  of so many rows: what makes doubles of 2 LANES codes at p, and the h-th LANES / 2 of these
     MAX32(a,b), MAX16(a,b), HALF_MAX16(a,b)   the greater, lane by lane, of unsigned integers: vectors of 32 bits,
                  of 16, half vectors of 16
     ADD_ALL(v)   the sum of a vector of doubles, in any order
     MAX_ALL(v)   the greatest of a vector of unsigned 32-bit integers
     TURN(v)      statement: transposes the LANES vectors v[0] .. of floats                                          */

#include "tile.h"

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef double vd __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef int64_t vi __attribute__((vector_size(4 * LANES)));
typedef float half __attribute__((vector_size(2 * LANES)));
typedef uint32_t half_int __attribute__((vector_size(2 * LANES)));
typedef float vf_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double vd_memory __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef uint32_t vu_memory __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef float half_memory __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef uint32_t half_int_memory __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline)) TARGET
#define LINE 64

enum { MOST_TOGETHER = 4 };

/* ---- chain: lanes are outputs, k ascends ---- */

/* k that a turned block holds: two codes of bf16 travel as one float. */
#define DEPTH(format) ((format) == REFMOE_BF16 ? 2 * LANES : LANES)
#define BLOCK_BYTES(format) (DEPTH(format) * LANES * ((format) == REFMOE_FLOAT32 ? 4 : 2))

INLINE vf stored_weights(const int format, const char *w)
{
    return format == REFMOE_FP16 ? FLOATS_FP16(w) : (vf) * (const vu_memory *)w;
}

INLINE void meet(const int rows, vf weights, const float *x, vf *sum)
{
    for (int i = 0; i < rows; i++)
        sum[i] = FMA32(weights, SPREAD32(x[i]), sum[i]);
}

/* Some k of every output: their weights are turned in registers, and every row of x meets them there. */
INLINE void chain_step(const int rows, const int format, const char *const *w, int64_t at, const float *x, vf *sum)
{
    vf turned[LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = stored_weights(format, w[j] + at);
    TURN(turned);
    for (int k = 0; k < LANES; k++)
        if (format == REFMOE_BF16) {
            meet(rows, (vf)((vu)turned[k] << 16), x + 2 * k * rows, sum);
            meet(rows, (vf)((vu)turned[k] & 0xFFFF0000), x + (2 * k + 1) * rows, sum);
        } else {
            meet(rows, turned[k], x + k * rows, sum);
        }
}

/* The k of a step from `from` to `to` alone: a sum meets each of its terms once, and no padding. */
INLINE void chain_part(const int rows, const int format, int from, int to, const char *const *w, int64_t at,
                       const float *x, vf *sum)
{
    vf turned[LANES], weights[2 * LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = stored_weights(format, w[j] + at);
    TURN(turned);
    for (int k = 0; k < LANES; k++)
        if (format == REFMOE_BF16)
            weights[2 * k] = (vf)((vu)turned[k] << 16), weights[2 * k + 1] = (vf)((vu)turned[k] & 0xFFFF0000);
        else
            weights[k] = turned[k];
    for (int k = from; k < to; k++)
        meet(rows, weights[k], x + k * rows, sum);
}

/* A sum too short for a step. */
INLINE void chain_short(const int rows, const int format, const struct few_block *b, const char *const *w, vf *sum)
{
    const float *x = b->x;
    for (int64_t k = 0; k < b->length; k++, x += rows) {
        vf weights;
        for (int j = 0; j < LANES; j++)
            weights[j] = number_at(w[j], format, k);
        meet(rows, weights, x, sum);
    }
}

/* k before the first whole lines of the cache: rows that a power of two keeps apart share few places in the cache,
   which then had to hold each line for two steps. */
INLINE int unaligned(const int format, const struct few_block *b)
{
    int run = BLOCK_BYTES(format) / LANES, beyond = (int)((uintptr_t)b->w % run);
    int item = format == REFMOE_FLOAT32 ? 4 : 2;
    return b->step % run || !beyond || beyond % item ? 0 : (run - beyond) / item;
}

/* Steps overlap at the ends, where the k in common count once. */
INLINE void chain_steps(const int rows, const int format, const struct few_block *b, const char *const *w, vf *sum)
{
    const int64_t depth = DEPTH(format), item = format == REFMOE_FLOAT32 ? 4 : 2;
    const char *ahead = b->ahead;
    const float *x = b->x;
    int64_t k = unaligned(format, b);
    if (k)
        chain_part(rows, format, 0, (int)k, w, 0, x, sum);
    for (; k + depth <= b->length; k += depth, ahead += BLOCK_BYTES(format)) {
        for (int j = 0; j < BLOCK_BYTES(format) / LINE; j++)
            __builtin_prefetch(ahead + j * LINE, 0, 2);
        chain_step(rows, format, w, k * item, x + k * rows, sum);
    }
    int64_t last = b->length - depth;
    if (k < b->length)
        chain_part(rows, format, (int)(k - last), (int)depth, w, last * item, x + last * rows, sum);
}

INLINE void chain_rows(const int rows, const int format, const struct few_block *b)
{
    const char *w[LANES];
    float *value = b->value;
    vf sum[MAX_FEW_ROWS];
    for (int j = 0; j < LANES; j++)
        w[j] = b->w + (j < b->cols ? j : b->cols - 1) * b->step;
    for (int i = 0; i < rows; i++)
        sum[i] = *(const vf_memory *)(value + i * LANES);
    if (b->length < DEPTH(format))
        chain_short(rows, format, b, w, sum);
    else
        chain_steps(rows, format, b, w, sum);
    for (int i = 0; i < rows; i++)
        *(vf_memory *)(value + i * LANES) = sum[i];
}

/* ---- exact: lanes are k, some outputs at a time ---- */

/* More outputs at a time meet a number of x that was loaded once, but read the weights less in order. Codes of bf16
   that were taken apart need registers, too. */
#define IS_APART(format, rows) ((format) == REFMOE_BF16 && (rows) <= APART_ROWS)
#define TOGETHER(format, rows) ((rows) <= (IS_APART(format, rows) ? 1 : SUMS / 4) ? 4 : 2)

/* Sums of one output and row: of every second half vector where registers allow it, else of all together. */
#define SECOND(rows, many) ((rows) * (many) <= SUMS / 2)

/* Weights of an output in a step, and half vectors of doubles that they make. */
#define STEP(format) ((format) == REFMOE_BF16 ? 2 * LANES : LANES)
#define HALVES(format) ((format) == REFMOE_BF16 ? 4 : 2)

/* The greatest codes so far of an output, without their signs: 32 bits a lane, or 16. */
struct top {
    vu wide;
    half_int narrow;
};

/* Half vector number h of a step's weights, as doubles. */
INLINE vd half_of(const int rows, const int format, const char *w, const struct apart *apart, int h)
{
    if (IS_APART(format, rows))
        return (vd)PART_BF16(*apart, h);
    if (format == REFMOE_BF16)
        return (vd)WIDEN_BF16(w + h * LANES);
    if (format == REFMOE_FP16)
        return DOUBLES(HALF_FP16(w + h * LANES));
    return DOUBLES(*(const half_memory *)(w + h * 2 * LANES));
}

INLINE void see_codes(const int format, const char *w, struct top *top)
{
    if (format == REFMOE_FP16)
        top->narrow = HALF_MAX16(top->narrow, *(const half_int_memory *)w & 0x7FFF7FFF);
    else if (format == REFMOE_BF16)
        top->wide = MAX16(top->wide, *(const vu_memory *)w & 0x7FFF7FFF);
    else
        top->wide = MAX32(top->wide, *(const vu_memory *)w & 0x7FFFFFFF);
}

INLINE double largest(const int format, const struct top *top)
{
    if (format == REFMOE_FLOAT32)
        return float_of_bits(MAX_ALL(top->wide));
    if (format == REFMOE_BF16)
        return float_of_bf16((uint16_t)MAX_ALL(MAX32(top->wide >> 16, top->wide & 0xFFFF)));
    half_int parts[2] = {top->narrow >> 16, top->narrow & 0xFFFF};
    vu all;
    memcpy(&all, parts, sizeof all);
    return float_of_fp16((uint16_t)MAX_ALL(all));
}

/* A step's weights of each of `many` outputs, `step` bytes apart, and the rows of x. */
INLINE void exact_step(const int rows, const int many, const int format, const char *w, int64_t step, const double *x,
                       vd (*sum)[MOST_TOGETHER][2], struct top *top)
{
    struct apart apart[MOST_TOGETHER];
    for (int j = 0; j < many; j++) {
        see_codes(format, w + j * step, &top[j]);
        if (IS_APART(format, rows))
            apart[j] = TAKE_APART(w + j * step);
    }
    for (int h = 0; h < HALVES(format); h++) {
        vd weights[MOST_TOGETHER];
        for (int j = 0; j < many; j++)
            weights[j] = half_of(rows, format, w + j * step, &apart[j], h);
        for (int i = 0; i < rows; i++) {
            vd own = *(const vd_memory *)(x + i * STEP(format) + h * (LANES / 2));
            if (IS_APART(format, rows) && rows > 1)
                __asm__("" : "+v"(own)); /* loaded once, not by every multiplication */
            for (int j = 0, half = SECOND(rows, many) ? h % 2 : 0; j < many; j++)
                sum[i][j][half] = FMA64(weights[j], own, sum[i][j][half]);
        }
    }
}

INLINE void exact_rest(const int rows, const int many, const int format, int count, const char *w, int64_t step,
                       const double *x, vd (*sum)[MOST_TOGETHER][2], struct top *top)
{
    const size_t item = format == REFMOE_FLOAT32 ? 4 : 2;
    char rest[MOST_TOGETHER][4 * LANES] = {{0}};
    for (int j = 0; j < many; j++)
        memcpy(rest[j], w + j * step, (size_t)count * item);
    exact_step(rows, many, format, rest[0], sizeof rest[0], x, sum, top);
}

INLINE void exact_outputs(const int rows, const int many, const int format, const struct few_block *b, int first,
                          int64_t step)
{
    const int64_t depth = STEP(format), run = depth * (format == REFMOE_FLOAT32 ? 4 : 2);
    const char *w = b->w + first * b->step, *ahead = first + many < b->cols ? w + many * step : b->ahead;
    const double *x = b->x;
    vd sum[MAX_FEW_ROWS][MOST_TOGETHER][2] = {{{{0}}}};
    struct top top[MOST_TOGETHER] = {{{0}, {0}}};
    int64_t k = 0;
    for (; k + depth <= b->length; k += depth, w += run, x += depth * rows, ahead += many * run) {
        for (int j = 0; j < many; j++)
            __builtin_prefetch(ahead + j * run, 0, 2);
        exact_step(rows, many, format, w, step, x, sum, top);
    }
    if (k < b->length)
        exact_rest(rows, many, format, (int)(b->length - k), w, step, x, sum, top);
    for (int j = 0; j < many; j++) {
        for (int i = 0; i < rows; i++)
            ((double *)b->value)[i * LANES + first + j] = ADD_ALL(sum[i][j][0] + sum[i][j][1]);
        b->largest[first + j] = largest(format, &top[j]);
    }
}

/* The last outputs overlap those before them. Where there are too few, one at a time is computed several times over. */
INLINE void exact_rows(const int rows, const int format, const struct few_block *b)
{
    const int many = TOGETHER(format, rows), enough = b->cols >= many;
    for (int j = 0; j < b->cols; j += enough ? many : 1)
        exact_outputs(rows, many, format, b, enough && j > b->cols - many ? b->cols - many : j, enough ? b->step : 0);
}

/* ---- one function for each number of rows and format ---- */

#define FUNCTION(profile, rows, format, code)                                                                         \
    static TARGET void profile##_##format##_##rows(const struct few_block *b) { profile##_rows(rows, code, b); }
#define EACH_FORMAT(profile, rows)                                                                                    \
    FUNCTION(profile, rows, float32, REFMOE_FLOAT32)                                                                  \
    FUNCTION(profile, rows, bf16, REFMOE_BF16)                                                                        \
    FUNCTION(profile, rows, fp16, REFMOE_FP16)
#define UP_TO_4(name) NULL, name##_1, name##_2, name##_3, name##_4
#define UP_TO_8(name) UP_TO_4(name), name##_5, name##_6, name##_7, name##_8

EACH_FORMAT(chain, 1) EACH_FORMAT(chain, 2) EACH_FORMAT(chain, 3) EACH_FORMAT(chain, 4)
EACH_FORMAT(exact, 1) EACH_FORMAT(exact, 2) EACH_FORMAT(exact, 3) EACH_FORMAT(exact, 4)
#if CHAIN_ROWS == 8
EACH_FORMAT(chain, 5) EACH_FORMAT(chain, 6) EACH_FORMAT(chain, 7) EACH_FORMAT(chain, 8)
#define UP_TO_MOST UP_TO_8
#else
#define UP_TO_MOST UP_TO_4
#endif

#define FEW_FUNCTIONS                                                                                                 \
    .cols = LANES, .bf16_exponent = BF16_EXPONENT, .rows = {[REFMOE_CHAIN] = CHAIN_ROWS, [REFMOE_EXACT] = 4},         \
    .run = {[REFMOE_CHAIN] = {{UP_TO_MOST(chain_float32)}, {UP_TO_MOST(chain_bf16)}, {UP_TO_MOST(chain_fp16)}},       \
            [REFMOE_EXACT] = {{UP_TO_4(exact_float32)}, {UP_TO_4(exact_bf16)}, {UP_TO_4(exact_fp16)}}}
