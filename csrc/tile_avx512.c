/* tile_avx512.c: the template with 512-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,f16c")))
#define LANES 8
#define ROWS 12
#define FMA64(a, b, c) ((vd)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define FMA32(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SPREAD64(x) ((vd)_mm512_set1_pd(x))
#define SPREAD32(x) ((vf)_mm512_set1_ps(x))
#define WIDEN(p) ((vd)_mm512_cvtps_pd(_mm256_loadu_ps(p)))
#define DOUBLES(v) ((vd)_mm512_cvtps_pd((__m256)(v)))
#define NARROW(v) ((half)_mm512_cvtpd_ps((__m512d)(v)))
#define PASS(p, v) _mm512_stream_ps((p), (__m512)(v))
#define JOIN(low, high)                                                                                               \
    ((vf)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)(low)), (__m256)(high), 1))
#define DIFFER(a, b)                                                                                                  \
    (_mm512_cmpneq_epi32_mask((__m512i)(a), (__m512i)(b)) | _mm512_cmp_ps_mask((__m512)(b), (__m512)(b), _CMP_UNORD_Q))
#define UNORDERED(a, b) _mm512_cmp_ps_mask((__m512)(a), (__m512)(b), _CMP_UNORD_Q)
#define SIGNS(v) _mm256_movemask_ps((__m256)(v))
#define FLOATS_FP16(p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p))))
#define DOUBLES_FP16(p) ((vd)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))))
#define FUSE(w, x, c) ((vd)fuse((__m512d)(w), (__m512d)(x), (__m512d)(c)))
#define LANE_ROWS 12
#define LANE_SHAPES                                                                                                   \
    LANE_TILE(chain_32, float, __m512, 2, _mm512_fmadd_ps, _mm512_set1_ps)                                            \
    LANE_TILE(chain_16, float, __m512, 1, _mm512_fmadd_ps, _mm512_set1_ps)                                            \
    LANE_TILE(chain_8, float, __m256, 1, _mm256_fmadd_ps, _mm256_set1_ps)                                             \
    LANE_TILE(chain_4, float, __m128, 1, _mm_fmadd_ps, _mm_set1_ps)                                                   \
    LANE_TILE(exact_16, double, __m512d, 2, _mm512_fmadd_pd, _mm512_set1_pd)                                          \
    LANE_TILE(exact_8, double, __m512d, 1, _mm512_fmadd_pd, _mm512_set1_pd)                                           \
    LANE_TILE(exact_4, double, __m256d, 1, _mm256_fmadd_pd, _mm256_set1_pd)

#define HALF_FMA32(a, b, c) ((half)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define DIRECT_SHAPES                                                                                                 \
    DIRECT_TILE(direct_4, 12, __m128, 1, 0, _mm_fmadd_ps, _mm_set1_ps)                                                \
    DIRECT_TILE(direct_8, 12, __m256, 1, 0, _mm256_fmadd_ps, _mm256_set1_ps)                                          \
    DIRECT_TILE(direct_16, 12, __m512, 1, 0, _mm512_fmadd_ps, _mm512_set1_ps)                                         \
    DIRECT_TILE(direct_24, 12, __m512, 1, 1, _mm512_fmadd_ps, _mm512_set1_ps)                                         \
    DIRECT_TILE(direct_32, 12, __m512, 2, 0, _mm512_fmadd_ps, _mm512_set1_ps)                                         \
    DIRECT_TILE(direct_40, 8, __m512, 2, 1, _mm512_fmadd_ps, _mm512_set1_ps)                                          \
    DIRECT_TILE(direct_48, 8, __m512, 3, 0, _mm512_fmadd_ps, _mm512_set1_ps)                                          \
    DIRECT_TILE(direct_56, 6, __m512, 3, 1, _mm512_fmadd_ps, _mm512_set1_ps)

/* Towards zero, and the last bit set where anything was lost. */
static inline __attribute__((always_inline)) TARGET __m512d fuse(__m512d w, __m512d x, __m512d c)
{
    __m512i cut = (__m512i)_mm512_fmadd_round_pd(w, x, c, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    __m512d below = _mm512_fmadd_round_pd(w, x, c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512d above = _mm512_fmadd_round_pd(w, x, c, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    __mmask8 lost = _mm512_cmp_pd_mask(below, above, _CMP_LT_OQ);
    return (__m512d)_mm512_mask_or_epi64(cut, lost, cut, _mm512_set1_epi64(1));
}

#include "sums.h"
#include "tile_template.h"

/* Of 16 vectors, those `apart` from each other by pairs: low halves of what `mix` calls halves, then high ones. */
#define MIX_ALL(apart, kind, low, high)                                                                               \
    for (int i = 0; i < TURN_SIZE; i++)                                                                               \
        if (!(i & (apart))) {                                                                                         \
            kind a = (kind)r[i], b = (kind)r[i + (apart)];                                                            \
            r[i] = (__m512)low(a, b), r[i + (apart)] = (__m512)high(a, b);                                            \
        }
#define EVEN_FOURS(a, b) _mm512_shuffle_f32x4(a, b, 0x88)
#define ODD_FOURS(a, b) _mm512_shuffle_f32x4(a, b, 0xDD)

static TARGET void turn(const float *x, int64_t step, float *to, int64_t width)
{
    static const int order[TURN_SIZE] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    __m512 r[TURN_SIZE];
    for (int i = 0; i < TURN_SIZE; i++)
        r[i] = _mm512_loadu_ps(x + i * step);
    MIX_ALL(1, __m512, _mm512_unpacklo_ps, _mm512_unpackhi_ps)
    MIX_ALL(2, __m512d, _mm512_unpacklo_pd, _mm512_unpackhi_pd)
    MIX_ALL(4, __m512, EVEN_FOURS, ODD_FOURS)
    MIX_ALL(8, __m512, EVEN_FOURS, ODD_FOURS)
    for (int i = 0; i < TURN_SIZE; i++)
        _mm512_storeu_ps(to + order[i] * width, r[i]);
}

static int runs_here(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f")
           && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512bw");
}

static void pass_by(void) { _mm_sfence(); }

const struct kernel refmoe_avx512 = {
    .name = "avx512",
    .needs = "an x86-64 processor with AVX-512 F, VL, DQ and BW",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .lanes = {[REFMOE_EXACT] = {LANE_ROWS, 3, {16, 8, 4}, {exact_16_along, exact_8_along, exact_4_along},
                                {exact_16_across, exact_8_across, exact_4_across}},
              [REFMOE_CHAIN] = {LANE_ROWS, 4, {32, 16, 8, 4},
                                {chain_32_along, chain_16_along, chain_8_along, chain_4_along},
                                {chain_32_across, chain_16_across, chain_8_across, chain_4_across},
                                {{4, 12, direct_4}, {8, 12, direct_8}, {16, 12, direct_16}, {24, 12, direct_24},
                                 {32, 12, direct_32}, {40, 8, direct_40}, {48, 8, direct_48}, {56, 6, direct_56}}},
              [REFMOE_WIDE] = WIDE_LANES},
    VECTOR_COPIES,
    .turn = turn,
    .squares = squares,
    .test = test,
    .span = span,
    .settle = settle,
    .pass_by = pass_by,
    .few = &refmoe_few_avx512,
    .pairs = &refmoe_pairs_avx512,
    .doubles = &refmoe_doubles_avx512,
    .sums = &refmoe_sums_avx512,
};

#else
typedef int refmoe_no_avx512; /* a translation unit may not be empty */
#endif
