/* few_pairs.h: the part of few_avx512.c for chains of bf16 that take two k a step, by the instruction and the rule of
   pairs.h: half the multiply-adds, and a chain waits for itself half as often. Weights are looked at as they are
   read. */

#include "pairs.h"

#define PAIRED __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,f16c,avx512bf16")))
#define INLINE_PAIRED static inline __attribute__((always_inline)) PAIRED

enum { PAIR_DEPTH = 2 * LANES }; /* k of a line of the cache */

/* Two k of every output, which become words as pairs.h has them. `least`: the smallest size of a weight so far, less
   one: zero is the largest. */
INLINE_PAIRED void meet_words(const int rows, __m512 weights, const uint32_t *x, __m512 *sum, __m512i *least)
{
    __m512i codes = _mm512_castps_si512(weights), words = _mm512_rol_epi32(codes, 16);
    __m512i size = _mm512_and_si512(codes, _mm512_set1_epi16(0x7FFF));
    *least = _mm512_min_epu16(*least, _mm512_sub_epi16(size, _mm512_set1_epi16(1)));
    for (int i = 0; i < rows; i++)
        sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)words, (__m512bh)_mm512_set1_epi32((int)x[i]));
}

/* A line of each output. */
INLINE_PAIRED void paired_step(const int rows, const char *w, int64_t step, const uint32_t *x, __m512 *sum,
                               __m512i *least)
{
    __m512 turned[LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = _mm512_loadu_ps(w + j * step);
    TURN(turned);
    for (int t = 0; t < LANES; t++)
        meet_words(rows, turned[t], x + t * rows, sum, least);
}

/* `count` k, fewer than a line has; zeros fill up the last word of an odd count in both factors. */
INLINE_PAIRED void paired_part(const int rows, int64_t count, const char *w, int64_t step, const uint32_t *x,
                               __m512 *sum, __m512i *least)
{
    __mmask32 real = (UINT32_C(1) << count) - 1;
    __m512 turned[LANES];
    for (int j = 0; j < LANES; j++)
        turned[j] = _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(real, w + j * step));
    TURN(turned);
    for (int t = 0; 2 * t < count; t++)
        meet_words(rows, turned[t], x + t * rows, sum, least);
}

/* k before the first whole lines, as many as words hold. */
INLINE_PAIRED int64_t words_unaligned(const struct few_block *b)
{
    int64_t count = unaligned(REFMOE_BF16, b);
    return count % 2 || b->length < PAIR_DEPTH ? 0 : count;
}

INLINE_PAIRED void paired_rows(const int rows, const struct few_block *b)
{
    const char *w = b->w, *ahead = b->ahead;
    const uint32_t *x = b->x;
    __m512 sum[MAX_FEW_ROWS];
    __m512i least = _mm512_set1_epi16(-1);
    int64_t k = words_unaligned(b);
    for (int i = 0; i < rows; i++)
        sum[i] = _mm512_setzero_ps();
    if (k)
        paired_part(rows, k, w, b->step, x, sum, &least);
    for (; k + PAIR_DEPTH <= b->length; k += PAIR_DEPTH, ahead += LANES * LINE) {
        for (int j = 0; j < LANES; j++)
            __builtin_prefetch(ahead + j * LINE, 0, 2);
        paired_step(rows, w + k * 2, b->step, x + k / 2 * rows, sum, &least);
    }
    if (k < b->length)
        paired_part(rows, b->length - k, w + k * 2, b->step, x + k / 2 * rows, sum, &least);
    for (int i = 0; i < rows; i++)
        _mm512_storeu_ps((float *)b->value + i * LANES, sum[i]);
    *b->largest = _mm512_cmplt_epu16_mask(least, _mm512_set1_epi16(UNSAFE_BELOW - 1)) != 0;
}

#define PAIRED_FUNCTION(rows) static PAIRED void paired_##rows(const struct few_block *b) { paired_rows(rows, b); }
PAIRED_FUNCTION(1) PAIRED_FUNCTION(2) PAIRED_FUNCTION(3) PAIRED_FUNCTION(4)
PAIRED_FUNCTION(5) PAIRED_FUNCTION(6) PAIRED_FUNCTION(7) PAIRED_FUNCTION(8)
