/* tile_avx2.c: the template with 256-bit vectors; AVX2 here always includes FMA. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 4
#define ROWS 6
#define FMA64(a, b, c) ((vd)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define FMA32(a, b, c) ((vf)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define SPREAD64(x) ((vd)_mm256_set1_pd(x))
#define SPREAD32(x) ((vf)_mm256_set1_ps(x))
#define WIDEN(p) ((vd)_mm256_cvtps_pd(_mm_loadu_ps(p)))
#define NARROW(v) ((half)_mm256_cvtpd_ps((__m256d)(v)))
#define SIGNS(v) _mm_movemask_ps((__m128)(v))
#include "tile_template.h"

static int runs_here(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

const struct kernel refmoe_avx2 = {
    .name = "avx2",
    .needs = "an x86-64 processor with AVX2 and FMA",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .squares = squares,
    .test = test,
};

#else
typedef int refmoe_no_avx2; /* a translation unit may not be empty */
#endif
