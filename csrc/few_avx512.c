/* few_avx512.c: the template of few.h with 512-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdint.h>

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,f16c")))
#define LANES 16
#define CHAIN_ROWS 8
#define SUMS 16
#define FMA64(a, b, c) ((vd)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define FMA32(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SPREAD32(x) ((vf)_mm512_set1_ps(x))
#define DOUBLES(v) ((vd)_mm512_cvtps_pd((__m256)(v)))
#define FLOATS_FP16(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define HALF_FP16(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define BF16_EXPONENT 896
#define WIDEN_BF16(p) widen_bf16(p)
#define APART_ROWS 2
#define TAKE_APART(p) take_apart(p)
#define PART_BF16(apart, h) part_bf16((apart), (h))
#define MAX32(a, b) ((vu)_mm512_max_epu32((__m512i)(a), (__m512i)(b)))
#define MAX16(a, b) ((vu)_mm512_max_epu16((__m512i)(a), (__m512i)(b)))
#define HALF_MAX16(a, b) ((half_int)_mm256_max_epu16((__m256i)(a), (__m256i)(b)))
#define ADD_ALL(v) _mm512_reduce_add_pd((__m512d)(v))
#define MAX_ALL(v) _mm512_reduce_max_epu32((__m512i)(v))
#define TURN(v) turn((__m512 *)(v))

/* Four rounds of exchanges: pairs, quadruples, and twice whole quarters of the vectors. */
static inline __attribute__((always_inline)) TARGET void turn(__m512 *v)
{
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2)
        a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]), a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    for (int i = 0; i < 16; i += 4)
        for (int h = 0; h < 2; h++) {
            __m512d low = _mm512_castps_pd(a[i + h]), high = _mm512_castps_pd(a[i + h + 2]);
            b[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int i = 0; i < 4; i++)
        for (int h = 0; h < 16; h += 8) {
            a[h + i] = _mm512_shuffle_f32x4(b[h + i], b[h + i + 4], 0x88);
            a[h + i + 4] = _mm512_shuffle_f32x4(b[h + i], b[h + i + 4], 0xDD);
        }
    for (int i = 0; i < 8; i++) {
        int to = i & 3, odd = i & 4;
        v[to + odd] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        v[to + odd + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xDD);
    }
}

/* Conversions to double take longer than what they are needed for. But a code with three bits put in between, sign and
   the end of an exponent, is the top of a double, subnormal or not: the number times 2^(127 - 1023). Infinity and NaN
   become numbers; few.c knows them by the largest code. Here are the 32 tops' first 16 bits, and their next, of which
   three count. */
struct apart {
    __m512i first, next;
};

static inline __attribute__((always_inline)) TARGET struct apart take_apart(const char *p)
{
    __m512i codes = _mm512_loadu_si512(p), kept = _mm512_set1_epi16((int16_t)0x8FFF);
    return (struct apart){_mm512_and_si512(_mm512_srai_epi16(codes, 3), kept), _mm512_slli_epi16(codes, 13)};
}

/* A double is four words, two of them 0: `next` is the second table of the permutation. */
static inline __attribute__((always_inline)) TARGET __m512d part_bf16(struct apart apart, int h)
{
    const __m512i each = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i from = _mm512_add_epi16(_mm512_or_si512(_mm512_slli_epi64(each, 48), _mm512_slli_epi64(each, 32)),
                                    _mm512_set1_epi64((int64_t)(8 * h) << 48 | (int64_t)(8 * h + 32) << 32));
    return _mm512_castsi512_pd(_mm512_maskz_permutex2var_epi16(0xCCCCCCCC, apart.first, from, apart.next));
}

static inline __attribute__((always_inline)) TARGET __m512d widen_bf16(const char *p)
{
    const __m512i kept = _mm512_set1_epi64((int64_t)0x8FFFE00000000000);
    __m512i codes = _mm512_cvtepi16_epi64(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm512_castsi512_pd(_mm512_and_si512(_mm512_slli_epi64(codes, 45), kept));
}

#include "codes.h"

#define SPREAD64(x) ((vd)_mm512_set1_pd(x))
#define MINI_EXPONENT 896
#define FOUR_POWER(s) 1.0
#define FOUR_DOUBLES(p, half, shape) ((vd)four_doubles((p), (half), (shape)))
#define MINI_DOUBLES(p, half, shape) ((vd)mini_doubles((p), (half), (shape)))
#define INT_DOUBLES(p, shape)                                                                                         \
    ((void)(shape), (vd)_mm512_cvtepi32_pd(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p)))))
#define LOW_DOUBLES(v) DOUBLES(_mm512_castps512_ps256((__m512)(v)))
#define HIGH_DOUBLES(v) DOUBLES(_mm512_extractf32x8_ps((__m512)(v), 1))
#define FOUR_FLOATS(v, shape) ((vf)_mm512_permutexvar_ps((__m512i)(v), (shape)->floats))

#define FUSE(w, x, c) ((vd)fuse((__m512d)(w), (__m512d)(x), (__m512d)(c)))

/* Of the two doubles about an exact sum, the odd one. */
static inline __attribute__((always_inline)) TARGET __m512d fuse(__m512d w, __m512d x, __m512d c)
{
    __m512d below = _mm512_fmadd_round_pd(w, x, c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512d above = _mm512_fmadd_round_pd(w, x, c, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __mmask8 odd = _mm512_test_epi64_mask((__m512i)below, _mm512_set1_epi64(1));
    return _mm512_mask_mov_pd(above, odd, below);
}

/* Codes of 4 bits are looked up in registers. Of others, sign and fraction go where a double has them, and the exponent
   to the end of its own, as for bf16: numbers times 2^(bias - 1023). The numbers of all have 16 bits, the last 48 of a
   double are zero. */
struct shape {
    __m512 floats;
    __m512i tops; /* the first 32 bits of the doubles */
    __m256i kept;
    __m128i up, down;
};

static inline __attribute__((always_inline)) TARGET struct shape shape_of(const struct small *s)
{
    float number[16] = {0};
    uint32_t top[16];
    int exponent = s->bits - 1 - s->fraction;
    for (uint32_t i = 0; i < 16; i++) {
        number[i] = s->bits == 4 ? float_of_small(s, i) : 0;
        top[i] = (uint32_t)(bits_of_double(number[i]) >> 32);
    }
    int kept = 0x8000 | ((1 << (s->bits - 1)) - 1) << (4 - s->fraction);
    return (struct shape){_mm512_loadu_ps(number), _mm512_loadu_si512(top), _mm256_set1_epi16((int16_t)kept),
                          _mm_cvtsi32_si128(16 - s->bits), _mm_cvtsi32_si128(11 - exponent)};
}

/* Even lanes of 32 bits look up the first eight codes, odd ones the others. */
static inline __attribute__((always_inline)) TARGET __m512d four_doubles(const uint8_t *p, int half,
                                                                         const struct shape *shape)
{
    const __m512i at = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    int64_t codes;
    memcpy(&codes, p, sizeof codes);
    __m512i top = _mm512_permutexvar_epi32(_mm512_srlv_epi32(_mm512_set1_epi64(codes), at), shape->tops);
    if (half)
        return _mm512_castsi512_pd(_mm512_and_si512(top, _mm512_set1_epi64((int64_t)0xFFFFFFFF00000000)));
    return _mm512_castsi512_pd(_mm512_slli_epi64(top, 32));
}

static inline __attribute__((always_inline)) TARGET __m512d mini_doubles(const uint8_t *p, int half,
                                                                         const struct shape *shape)
{
    const __m512i first = _mm512_slli_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), 48);
    const __m512i at = half ? _mm512_add_epi64(first, _mm512_set1_epi64(INT64_C(8) << 48)) : first;
    __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m256i top = _mm256_sra_epi16(_mm256_sll_epi16(codes, shape->up), shape->down);
    __m512i tops = _mm512_castsi256_si512(_mm256_and_si256(top, shape->kept));
    return _mm512_castsi512_pd(_mm512_maskz_permutexvar_epi16(0x88888888, at, tops));
}

#include "few_template.h"
#include "few_codes.h"
#include "few_pairs.h"

const struct few refmoe_few_avx512 = {FEW_FUNCTIONS, CODES_FUNCTIONS, .paired = {UP_TO_8(paired)}};

#else
typedef int refmoe_no_few_avx512; /* a translation unit may not be empty */
#endif
