/* formulas_portable.c: the formulas without any instruction set's help; a multiply-add rounds twice. */

#define TARGET
#define LANES 2
#define FMA(a, b, c) ((a) * (b) + (c))
#define WIDEN(p) ((vd){(p)[0], (p)[1]})
#define NARROW(v) narrow_pair(v)
#define SIGNS(v) sign_pair((half_int)(v))
#define LEAST(a, b) choose((a) < (b), a, b)
#define MOST(a, b) choose((a) > (b), a, b)
#define ROOT(v) ((vd){__builtin_sqrt((v)[0]), __builtin_sqrt((v)[1])})
#define FORMULAS refmoe_formulas_portable
#define KERNEL "portable"
#include "formulas_vectors.h"

static inline half narrow_pair(vd v) { return (half){(float)v[0], (float)v[1]}; }

static inline uint32_t sign_pair(half_int v) { return (uint32_t)v[0] >> 31 | (uint32_t)v[1] >> 31 << 1; }

#include "formulas_template.h"
