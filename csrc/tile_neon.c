/* tile_neon.c: the template with 128-bit vectors of aarch64. (The vectors of 32-bit ARM flush subnormals: no use
   here.) */

#if defined(__aarch64__)

#include <arm_neon.h>

#define TARGET
#define LANES 2
#define ROWS 12
#define FMA64(a, b, c) ((vd)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#define FMA32(a, b, c) ((vf)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define SPREAD64(x) ((vd)vdupq_n_f64(x))
#define SPREAD32(x) ((vf)vdupq_n_f32(x))
#define WIDEN(p) ((vd)vcvt_f64_f32(vld1_f32(p)))
#define NARROW(v) ((half)vcvt_f32_f64((float64x2_t)(v)))
#define SIGNS(v) (vget_lane_u32((uint32x2_t)(v), 0) >> 31 | vget_lane_u32((uint32x2_t)(v), 1) >> 31 << 1)
#define FLOATS_FP16(p) ((vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
#define DOUBLES_FP16(p) ((vd){float_of_fp16((p)[0]), float_of_fp16((p)[1])})
#define LANE_FMA32(a, b, c) vfmaq_f32(c, a, b)
#define LANE_FMA64(a, b, c) vfmaq_f64(c, a, b)
#define LANE_ROWS 12
#define LANE_SHAPES                                                                                                   \
    LANE_TILE(chain_8, float, float32x4_t, 2, LANE_FMA32, vdupq_n_f32)                                                \
    LANE_TILE(chain_4, float, float32x4_t, 1, LANE_FMA32, vdupq_n_f32)                                                \
    LANE_TILE(exact_4, double, float64x2_t, 2, LANE_FMA64, vdupq_n_f64)
#define DIRECT_SHAPES                                                                                                 \
    DIRECT_TILE(direct_4, LANE_ROWS, float32x4_t, 1, 0, LANE_FMA32, vdupq_n_f32)                                      \
    DIRECT_TILE(direct_8, LANE_ROWS, float32x4_t, 2, 0, LANE_FMA32, vdupq_n_f32)
#include "sums.h"
#include "tile_template.h"

static int runs_here(void) { return 1; } /* every aarch64 compiler uses these vectors unasked */

const struct kernel refmoe_neon = {
    .name = "neon",
    .needs = "an aarch64 processor",
    .runs_here = runs_here,
    .tile = VECTOR_TILES,
    .lanes = {[REFMOE_EXACT] = {LANE_ROWS, 1, {4}, {exact_4_along}, {exact_4_across}},
              [REFMOE_CHAIN] = {LANE_ROWS, 2, {8, 4}, {chain_8_along, chain_4_along},
                               {chain_8_across, chain_4_across},
                                {{4, LANE_ROWS, direct_4}, {8, LANE_ROWS, direct_8}}},
              [REFMOE_WIDE] = WIDE_LANES},
    VECTOR_COPIES,
    .squares = squares,
    .test = test,
    .span = span,
    .settle = settle,
    .sums = &refmoe_sums_portable,
};

#else
typedef int refmoe_no_neon; /* a translation unit may not be empty */
#endif
