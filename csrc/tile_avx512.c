/* tile_avx512.c: the template with 512-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#define LANES 8
#define ROWS 8
#define FMA64(a, b, c) ((vd)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define FMA32(a, b, c) ((vf)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define SPREAD64(x) ((vd)_mm512_set1_pd(x))
#define SPREAD32(x) ((vf)_mm512_set1_ps(x))
#define WIDEN(p) ((vd)_mm512_cvtps_pd(_mm256_loadu_ps(p)))
#define NARROW(v) ((half)_mm512_cvtpd_ps((__m512d)(v)))
#define SIGNS(v) _mm256_movemask_ps((__m256)(v))
#include "tile_template.h"

static int runs_here(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f")
           && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
           && __builtin_cpu_supports("avx512bw");
}

const struct kernel refmoe_avx512 = {
    .name = "avx512",
    .needs = "an x86-64 processor with AVX-512 F, VL, DQ and BW",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .squares = squares,
    .test = test,
};

#else
typedef int refmoe_no_avx512; /* a translation unit may not be empty */
#endif
