/* pairs_avx512.c: two k a step with vdpbf16ps of AVX-512.

   The instruction adds the product of the high halves, then that of the low ones, each with one rounding to float32, and
   takes subnormals for zero in its operands, results and accumulators. Some processors might do otherwise: a sum of
   which the answer is known is done first.                                                                         */

#if defined(__x86_64__)

#include <immintrin.h>

#include "tile.h"

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { ROWS = 12 };

/* Before a loop over the rows of a tile: sums stay in registers where every index is a constant. */
#define EACH_INDEX _Pragma("GCC unroll 16")

/* A line of codes as words. `least` gathers the smallest of them, less one: zero is the largest. */
INLINE void copy_line(const char *codes, uint32_t *to, __m512i *least)
{
    __m512i line = _mm512_loadu_si512(codes), size = _mm512_and_si512(line, _mm512_set1_epi16(0x7FFF));
    *least = _mm512_min_epu16(*least, _mm512_sub_epi16(size, _mm512_set1_epi16(1)));
    _mm512_storeu_si512(to, _mm512_rol_epi32(line, 16));
}

/* `count` vectors a row. Each step fetches a line, and copies one between the sums, which leave it room. */
#define PAIR_TILE(name, vector, bf16, count, dot, spread, load, keep)                                                 \
    INLINE int name##_rows(const int rows, const int copying, int64_t words, const uint32_t *left,                    \
                           const uint32_t *right, float *acc, const struct ahead *ahead)                              \
    {                                                                                                                 \
        enum { LANE = sizeof(vector) / sizeof(float) };                                                               \
        vector sum[ROWS][count];                                                                                      \
        __m512i least = _mm512_set1_epi16(-1);                                                                        \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = load(acc + i * PAIR_COLS + v * LANE);                                                     \
        for (int64_t lines = (words + 15) / 16, from = 0, row = 0; from < words; from += lines, row += row + 1 < rows) {\
            const char *fetch = ahead->fetch + row * ahead->step, *codes = ahead->codes + row * ahead->step;          \
            uint32_t *copy = copying ? ahead->to + row * PAIR_PITCH : NULL;                                           \
            int64_t to = from + lines < words ? from + lines : words;                                                 \
            for (int64_t t = from; t < to; t++, fetch += 64, right += LANE * count) {                                 \
                bf16 x[count];                                                                                        \
                __builtin_prefetch(fetch, 0, 0);                                                                      \
                if (copying)                                                                                          \
                    copy_line(codes + 64 * (t - from), copy + 16 * (t - from), &least);                               \
                EACH_INDEX for (int v = 0; v < count; v++)                                                            \
                    x[v] = (bf16)load(right + v * LANE);                                                              \
                EACH_INDEX for (int i = 0; i < rows; i++) {                                                           \
                    bf16 w = (bf16)spread((int)left[i * PAIR_PITCH + t]);                                             \
                    EACH_INDEX for (int v = 0; v < count; v++)                                                        \
                        sum[i][v] = dot(sum[i][v], w, x[v]);                                                          \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                keep(acc + i * PAIR_COLS + v * LANE, sum[i][v]);                                                      \
        return !_mm512_cmplt_epu16_mask(least, _mm512_set1_epi16(UNSAFE_BELOW - 1));                                  \
    }                                                                                                                 \
    static TARGET int name(int rows, int64_t words, const uint32_t *left, const uint32_t *right, float *acc,          \
                           const struct ahead *ahead)                                                                 \
    {                                                                                                                 \
        if (ahead->to)                                                                                                \
            return name##_rows(ROWS, 1, words, left, right, acc, ahead);                                              \
        switch (rows) {                                                                                               \
            CASE(name, 1) CASE(name, 2) CASE(name, 3) CASE(name, 4) CASE(name, 5) CASE(name, 6)                       \
            CASE(name, 7) CASE(name, 8) CASE(name, 9) CASE(name, 10) CASE(name, 11) CASE(name, 12)                    \
        }                                                                                                             \
        return 1;                                                                                                     \
    }
#define CASE(name, count)                                                                                             \
    case count:                                                                                                       \
        return name##_rows(count, 0, words, left, right, acc, ahead);

#define LOAD_8(p) _mm256_loadu_ps((const float *)(p))

PAIR_TILE(pairs_32, __m512, __m512bh, 2, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_loadu_ps, _mm512_storeu_ps)
PAIR_TILE(pairs_16, __m512, __m512bh, 1, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_loadu_ps, _mm512_storeu_ps)
PAIR_TILE(pairs_8, __m256, __m256bh, 1, _mm256_dpbf16_ps, _mm256_set1_epi32, LOAD_8, _mm256_storeu_ps)

/* 32 codes as words; `unsafe` gathers those of them that are not zero and too small. */
INLINE void copy_32(const uint16_t *w, __mmask32 real, uint32_t *to, __mmask32 *unsafe)
{
    const __m512i size = _mm512_set1_epi16(0x7FFF), one = _mm512_set1_epi16(1);
    __m512i codes = _mm512_maskz_loadu_epi16(real, w);
    __m512i below = _mm512_sub_epi16(_mm512_and_si512(codes, size), one); /* of zero: the largest number */
    *unsafe |= _mm512_cmplt_epu16_mask(below, _mm512_set1_epi16(UNSAFE_BELOW - 1));
    _mm512_storeu_si512(to, _mm512_rol_epi32(codes, 16));
}

static TARGET int copy(int rows, int64_t length, const uint16_t *w, int64_t step, uint32_t *left)
{
    __mmask32 unsafe = 0;
    for (int i = 0; i < rows; i++, w += step, left += PAIR_PITCH) {
        int64_t k = 0;
        for (; k + 32 <= length; k += 32)
            copy_32(w + k, UINT32_MAX, left + k / 2, &unsafe);
        if (k < length)
            copy_32(w + k, (__mmask32)((UINT32_C(1) << (length - k)) - 1), left + k / 2, &unsafe);
    }
    return unsafe == 0;
}

/* ---- does the instruction add as it should? ---- */

static uint32_t next_word(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* A safe code: any sign and significand, exponents from 2^-55 to 2^8. */
static uint32_t next_code(uint32_t *state)
{
    uint32_t exponent = 127 - 55 + next_word(state) % 64;
    return (next_word(state) & 0x807F) | exponent << 7;
}

static TARGET float chained(float sum, uint32_t a, uint32_t b)
{
    __m128 high = _mm_fmadd_ss(_mm_set_ss(float_of_bits(a & 0xFFFF0000u)), _mm_set_ss(float_of_bits(b & 0xFFFF0000u)),
                               _mm_set_ss(sum));
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(float_of_bits(a << 16)), _mm_set_ss(float_of_bits(b << 16)), high));
}

static TARGET int is_chained(void)
{
    uint32_t state = 1, sixteen[3][16];
    int alike = 1;
    for (int turn = 0; turn < 8; turn++) {
        for (int j = 0; j < 16; j++)
            for (int i = 0; i < 3; i++)
                sixteen[i][j] = next_code(&state) << 16 | (i < 2 ? next_code(&state) : 0);
        __m512 sum = _mm512_loadu_ps(sixteen[2]);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_ps(sixteen[0]), (__m512bh)_mm512_loadu_ps(sixteen[1]));
        uint32_t got[16];
        _mm512_storeu_ps(got, sum);
        for (int j = 0; j < 16; j++)
            alike &= got[j] == bits_of_float(chained(float_of_bits(sixteen[2][j]), sixteen[0][j], sixteen[1][j]));
    }
    return alike;
}

static int runs_here(void) { return __builtin_cpu_supports("avx512bf16") && is_chained(); }

const struct pairs refmoe_pairs_avx512 = {
    .runs_here = runs_here,
    .rows = ROWS,
    .width = {32, 16, 8},
    .multiply = {pairs_32, pairs_16, pairs_8},
    .copy = copy,
};

#else
typedef int refmoe_no_pairs_avx512; /* a translation unit may not be empty */
#endif
