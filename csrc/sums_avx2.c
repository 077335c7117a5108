/* sums_avx2.c: the template with 256-bit vectors. */

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 4
#define SIGNS(v) (unsigned)_mm256_movemask_pd((__m256d)(v))
#define SUMS refmoe_sums_avx2
#include "sums_template.h"
#else
typedef int refmoe_no_sums_avx2; /* a translation unit may not be empty */
#endif
