/* sums_avx2.c: the template with 256-bit vectors. */

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 4
#define SUMS refmoe_sums_avx2
#include "sums_template.h"
#else
typedef int refmoe_no_sums_avx2; /* a translation unit may not be empty */
#endif
