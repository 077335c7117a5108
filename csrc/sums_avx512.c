/* sums_avx512.c: the template with 512-bit vectors. */

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#define LANES 8
#define SIGNS(v) (unsigned)_mm512_movepi64_mask((__m512i)(v))
#define SUMS refmoe_sums_avx512
#include "sums_template.h"
#else
typedef int refmoe_no_sums_avx512; /* a translation unit may not be empty */
#endif
