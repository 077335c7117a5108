/* few_avx2.c: the template of few.h with 256-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
#define CHAIN_ROWS 4
#define SUMS 8
#define FMA64(a, b, c) ((vd)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define FMA32(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SPREAD32(x) ((vf)_mm256_set1_ps(x))
#define DOUBLES(v) ((vd)_mm256_cvtps_pd((__m128)(v)))
#define FLOATS_FP16(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define HALF_FP16(p) _mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(const void *)(p)))
#define BF16_EXPONENT 0
#define WIDEN_BF16(p) widen_bf16(p)
#define APART_ROWS 0
#define TAKE_APART(p) ((struct apart){p})
#define PART_BF16(apart, h) widen_bf16((apart).codes + 8 * (h))
#define MAX32(a, b) ((vu)_mm256_max_epu32((__m256i)(a), (__m256i)(b)))
#define MAX16(a, b) ((vu)_mm256_max_epu16((__m256i)(a), (__m256i)(b)))
#define HALF_MAX16(a, b) ((half_int)_mm_max_epu16((__m128i)(a), (__m128i)(b)))
#define ADD_ALL(v) add_all((__m256d)(v))
#define MAX_ALL(v) max_all((__m256i)(v))
#define TURN(v) turn((__m256 *)(v))

#define HERE static inline __attribute__((always_inline)) TARGET

HERE double add_all(__m256d v)
{
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

HERE unsigned max_all(__m256i v)
{
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4E));
    return (unsigned)_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xB1)));
}

struct apart {
    const char *codes;
};

HERE __m256d widen_bf16(const char *codes)
{
    __m128i four = _mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)(const void *)codes));
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(four, 16)));
}

/* Three rounds of exchanges: pairs, quadruples, halves of the vectors. */
HERE void turn(__m256 *v)
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2)
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int h = 0; h < 2; h++) {
            __m256d low = _mm256_castps_pd(a[i + h]), high = _mm256_castps_pd(a[i + h + 2]);
            b[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
            b[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

#include "codes.h"

#define SPREAD64(x) ((vd)_mm256_set1_pd(x))
#define MINI_EXPONENT 0
#define FOUR_POWER(s) (s)->power
#define FOUR_DOUBLES(p, half, shape) ((vd)four_doubles((p) + 2 * (half), (shape)))
#define MINI_DOUBLES(p, half, shape) ((vd)placed(_mm_cvtepu8_epi32(load_four((p) + 4 * (half))), (shape)))
#define INT_DOUBLES(p, shape) ((void)(shape), (vd)_mm256_cvtepi32_pd(_mm_cvtepi8_epi32(load_four(p))))
#define LOW_DOUBLES(v) DOUBLES(_mm256_castps256_ps128((__m256)(v)))
#define HIGH_DOUBLES(v) DOUBLES(_mm256_extractf128_ps((__m256)(v), 1))
#define FOUR_FLOATS(v, shape) ((vf)four_floats((__m256i)(v), (shape)))

/* Sign, exponent and fraction of a code go where a float32 has them: numbers times 2^(bias - 127). */
struct shape {
    __m128i kept, up, down;
    float power;
    int integer;
};

HERE struct shape shape_of(const struct small *s)
{
    int exponent = s->bits - 1 - s->fraction;
    uint32_t kept = UINT32_C(1) << 31 | ((UINT32_C(1) << (s->bits - 1)) - 1) << (23 - s->fraction);
    return (struct shape){_mm_set1_epi32((int32_t)kept), _mm_cvtsi32_si128(32 - s->bits),
                          _mm_cvtsi32_si128(s->integer ? 32 - s->bits : 8 - exponent), s->power, s->integer};
}

HERE __m128i load_four(const uint8_t *p)
{
    int32_t codes;
    memcpy(&codes, p, sizeof codes);
    return _mm_cvtsi32_si128(codes);
}

HERE __m256d placed(__m128i codes, const struct shape *shape)
{
    __m128i top = _mm_sra_epi32(_mm_sll_epi32(codes, shape->up), shape->down);
    return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_and_si128(top, shape->kept)));
}

HERE __m256d four_doubles(const uint8_t *p, const struct shape *shape)
{
    __m128i codes = _mm_srlv_epi32(_mm_set1_epi32(p[0] | p[1] << 8), _mm_setr_epi32(0, 4, 8, 12));
    if (shape->integer)
        return _mm256_cvtepi32_pd(_mm_sra_epi32(_mm_sll_epi32(codes, shape->up), shape->down));
    return placed(codes, shape);
}

HERE __m256 four_floats(__m256i codes, const struct shape *shape)
{
    __m256i top = _mm256_sra_epi32(_mm256_sll_epi32(codes, shape->up), shape->down);
    __m256i kept = _mm256_broadcastsi128_si256(shape->kept);
    if (shape->integer)
        return _mm256_cvtepi32_ps(top);
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(top, kept)), _mm256_set1_ps(shape->power));
}

#include "few_template.h"
#include "few_codes.h"

const struct few refmoe_few_avx2 = {FEW_FUNCTIONS, CODES_FUNCTIONS};

#else
typedef int refmoe_no_few_avx2; /* a translation unit may not be empty */
#endif
