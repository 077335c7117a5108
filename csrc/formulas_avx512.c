/* formulas_avx512.c: the formulas with 512-bit vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#define LANES 8
#define FMA(a, b, c) ((vd)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#define WIDEN(p) ((vd)_mm512_cvtps_pd(_mm256_loadu_ps(p)))
#define NARROW(v) ((half)_mm512_cvtpd_ps((__m512d)(v)))
#define SIGNS(v) _mm256_movemask_ps((__m256)(v))
#define LEAST(a, b) ((vd)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define MOST(a, b) ((vd)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#define ROOT(v) ((vd)_mm512_sqrt_pd((__m512d)(v)))
#define FORMULAS refmoe_formulas_avx512
#define KERNEL "avx512"
#include "formulas_template.h"

#else
typedef int refmoe_no_formulas_avx512; /* a translation unit may not be empty */
#endif
