/* formulas_vectors.h: vectors of LANES doubles for the formulas of one instruction set. */

#ifndef REFMOE_FORMULAS_VECTORS_H
#define REFMOE_FORMULAS_VECTORS_H

#include "formulas.h"

typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vi __attribute__((vector_size(8 * LANES)));
typedef float half __attribute__((vector_size(4 * LANES)));
typedef int32_t half_int __attribute__((vector_size(4 * LANES)));
typedef uint32_t half_bits __attribute__((vector_size(4 * LANES)));
typedef float half_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE vd spread(double x) { return x - (vd){0}; }
INLINE vd choose(vi mask, vd yes, vd no) { return (vd)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vd size_of(vd x) { return (vd)((vi)x & ((vi){0} + INT64_MAX)); }
/* +0, or NaN where x is infinite or NaN. */
INLINE vd poison(vd x) { return x - x; }

#endif
