/* tile_avx2.c: the template with 256-bit vectors; AVX2 here always includes FMA and F16C. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 4
#define ROWS 6
#define FMA64(a, b, c) ((vd)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define FMA32(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SPREAD64(x) ((vd)_mm256_set1_pd(x))
#define SPREAD32(x) ((vf)_mm256_set1_ps(x))
#define WIDEN(p) ((vd)_mm256_cvtps_pd(_mm_loadu_ps(p)))
#define NARROW(v) ((half)_mm256_cvtpd_ps((__m256d)(v)))
#define PASS(p, v) _mm256_stream_ps((p), (__m256)(v))
#define UNORDERED(a, b) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(a), (__m256)(b), _CMP_UNORD_Q))
#define SIGNS(v) _mm_movemask_ps((__m128)(v))
#define FLOATS_FP16(p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p))))
#define DOUBLES_FP16(p) ((vd)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(const void *)(p)))))
#define LANE_ROWS 6
#define LANE_SHAPES                                                                                                   \
    LANE_TILE(chain_16, float, __m256, 2, _mm256_fmadd_ps, _mm256_set1_ps)                                            \
    LANE_TILE(chain_8, float, __m256, 1, _mm256_fmadd_ps, _mm256_set1_ps)                                             \
    LANE_TILE(chain_4, float, __m128, 1, _mm_fmadd_ps, _mm_set1_ps)                                                   \
    LANE_TILE(exact_8, double, __m256d, 2, _mm256_fmadd_pd, _mm256_set1_pd)                                           \
    LANE_TILE(exact_4, double, __m256d, 1, _mm256_fmadd_pd, _mm256_set1_pd)
#define HALF_FMA32(a, b, c) ((half)_mm_fmadd_ps((__m128)(a), (__m128)(b), (__m128)(c)))
#define DIRECT_SHAPES                                                                                                 \
    DIRECT_TILE(direct_4, LANE_ROWS, __m128, 1, 0, _mm_fmadd_ps, _mm_set1_ps)                                         \
    DIRECT_TILE(direct_8, LANE_ROWS, __m256, 1, 0, _mm256_fmadd_ps, _mm256_set1_ps)                                   \
    DIRECT_TILE(direct_12, LANE_ROWS, __m256, 1, 1, _mm256_fmadd_ps, _mm256_set1_ps)                                  \
    DIRECT_TILE(direct_16, LANE_ROWS, __m256, 2, 0, _mm256_fmadd_ps, _mm256_set1_ps)
#include "sums.h"
#include "tile_template.h"

static int runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static void pass_by(void) { _mm_sfence(); }

const struct kernel refmoe_avx2 = {
    .name = "avx2",
    .needs = "an x86-64 processor with AVX2, FMA and F16C",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .lanes = {[REFMOE_EXACT] = {LANE_ROWS, 2, {8, 4}, {exact_8_along, exact_4_along},
                                {exact_8_across, exact_4_across}},
              [REFMOE_CHAIN] = {LANE_ROWS, 3, {16, 8, 4}, {chain_16_along, chain_8_along, chain_4_along},
                                {chain_16_across, chain_8_across, chain_4_across},
                                {{4, LANE_ROWS, direct_4}, {8, LANE_ROWS, direct_8},
                                 {12, LANE_ROWS, direct_12}, {16, LANE_ROWS, direct_16}}},
              [REFMOE_WIDE] = WIDE_LANES},
    VECTOR_COPIES,
    .squares = squares,
    .test = test,
    .span = span,
    .settle = settle,
    .pass_by = pass_by,
    .few = &refmoe_few_avx2,
    .sums = &refmoe_sums_avx2,
};

#else
typedef int refmoe_no_avx2; /* a translation unit may not be empty */
#endif
