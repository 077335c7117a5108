/* tile_neon.c: the template with 128-bit vectors of aarch64. (The vectors of 32-bit ARM flush subnormals: no use here.) */

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANES 2
#define ROWS 8
#define FMA64(a, b, c) ((vd)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#define FMA32(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define SPREAD64(x) ((vd)vdupq_n_f64(x))
#define SPREAD32(x) ((vf)vdupq_n_f32(x))
#define WIDEN(p) ((vd)vcvt_f64_f32(vld1_f32(p)))
#define NARROW(v) ((half)vcvt_f32_f64((float64x2_t)(v)))
#define SIGNS(v) (vget_lane_u32((uint32x2_t)(v), 0) >> 31 | vget_lane_u32((uint32x2_t)(v), 1) >> 31 << 1)
#include "tile_template.h"

static int runs_here(void) { return 1; } /* every aarch64 compiler uses these vectors unasked */

const struct kernel refmoe_neon = {
    .name = "neon",
    .needs = "an aarch64 processor",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .squares = squares,
    .test = test,
};

#else
typedef int refmoe_no_neon; /* a translation unit may not be empty */
#endif
