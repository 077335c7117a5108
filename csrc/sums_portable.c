/* sums_portable.c: the template with 128-bit vectors, which the compiler turns into what the processor has. */

#define TARGET
#define LANES 2
#define SIGNS(v) ((unsigned)((v)[0] < 0) | (unsigned)((v)[1] < 0) << 1)
#define SUMS refmoe_sums_portable
#include "sums_template.h"
