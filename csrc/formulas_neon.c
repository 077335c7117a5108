/* formulas_neon.c: the formulas with 128-bit vectors of aarch64. */

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANES 2
#define FMA(a, b, c) ((vd)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#define WIDEN(p) ((vd)vcvt_f64_f32(vld1_f32(p)))
#define NARROW(v) ((half)vcvt_f32_f64((float64x2_t)(v)))
#define SIGNS(v) (vget_lane_u32((uint32x2_t)(v), 0) >> 31 | vget_lane_u32((uint32x2_t)(v), 1) >> 31 << 1)
#define LEAST(a, b) ((vd)vminq_f64((float64x2_t)(a), (float64x2_t)(b)))
#define MOST(a, b) ((vd)vmaxq_f64((float64x2_t)(a), (float64x2_t)(b)))
#define ROOT(v) ((vd)vsqrtq_f64((float64x2_t)(v)))
#define FORMULAS refmoe_formulas_neon
#define KERNEL "neon"
#include "formulas_template.h"

#else
typedef int refmoe_no_formulas_neon; /* a translation unit may not be empty */
#endif
