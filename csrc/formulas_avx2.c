/* formulas_avx2.c: the formulas with 256-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 4
#define FMA(a, b, c) ((vd)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define WIDEN(p) ((vd)_mm256_cvtps_pd(_mm_loadu_ps(p)))
#define NARROW(v) ((half)_mm256_cvtpd_ps((__m256d)(v)))
#define SIGNS(v) _mm_movemask_ps((__m128)(v))
#define LEAST(a, b) ((vd)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define MOST(a, b) ((vd)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#define ROOT(v) ((vd)_mm256_sqrt_pd((__m256d)(v)))
#define FORMULAS refmoe_formulas_avx2
#define KERNEL "avx2"
#include "formulas_template.h"

#else
typedef int refmoe_no_formulas_avx2; /* a translation unit may not be empty */
#endif
