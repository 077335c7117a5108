/* refmoe_formulas.h: formulas read element by element, the manual.

   Every output is the exact real value of its formula rounded once to `format` (half to even, subnormals, overflow to
   infinity; exact zero is +0, a value that rounds to zero keeps its sign), or it is left open: a float64 value with a
   proven bound does not tell how the exact one rounds, or an operand is infinite or NaN. The caller evaluates what is
   left open by other means; its place in `out` holds no answer.

     refmoe_gated           out    = act(x) u                x = min(gate, limit),  u = clip(up, -limit, limit) + offset
     refmoe_gated_backward  d_gate = d u act'(x) [gate <= limit]
                            d_up   = d act(x)    [|up| <= limit]
     refmoe_scaled_rows     out[r,j] = w[r] x[r,j]

   up NULL stands for u = 1: the activation alone, and then d_up is NULL too. Activations:
     REFMOE_SILU        x sigmoid(alpha x)
     REFMOE_GELU_TANH   x sigmoid(sqrt(8/pi) (x + 0.044715 x^3))
     REFMOE_RELU        max(x, 0), slope 0 at 0
     REFMOE_RELU2       max(x, 0)^2
     REFMOE_SIGMOID     sigmoid(x)
     REFMOE_GELU        x Phi(x), Phi the distribution of the normal law
     REFMOE_SQRT_SOFTPLUS   sqrt(log(1 + exp(x)))
     REFMOE_SOFTCAP     cap tanh(alpha x / cap)
   Soft caps of silu: with cap > 0 it is cap tanh(x / cap) sigmoid(alpha x); with up_cap > 0, u is
   up_cap tanh(clip(up, -limit, limit) / up_cap) + offset, and d_up takes the slope of that.

   Row by row, over the elements that are used; others get +0, and so does a row of which none is:
     refmoe_softmax             out_j  = c p_j                         p = exp(z) / sum_i exp(z_i)
     refmoe_softmax_backward    out_j  = c p_j (d_j - sum_i d_i p_i)
     refmoe_log_sum_exp         out    = log(sum_i exp(z_i)), every element used
   A row is left open as a whole.

   Promise. What is decided depends on the operands and the format alone. Which elements are left open may differ from
   kernel to kernel.

   Arrays are dense float32; no output may overlap another array. Errors, threads and the floating-point environment are
   as in refmoe_kernels.h; there is no workspace.  */

#ifndef REFMOE_FORMULAS_H
#define REFMOE_FORMULAS_H

#include "refmoe_kernels.h"

REFMOE_BEGIN

/* cffi: begin */

enum refmoe_activation_name { REFMOE_SILU = 0, REFMOE_GELU_TANH = 1, REFMOE_RELU = 2, REFMOE_RELU2 = 3,
                              REFMOE_SIGMOID = 4, REFMOE_GELU = 5, REFMOE_SQRT_SOFTPLUS = 6, REFMOE_SOFTCAP = 7 };

/* alpha finite; limit +inf for none, else 2^-40 <= limit; offset 0, or 2^-60 <= |offset|; both at most 2^100. alpha 1
   but for silu and softcap. Caps: 0 for none, else 2^-20 .. 2^20, and then alpha is 0 or 2^-100 <= |alpha| <= 2^100;
   softcap has its cap, silu may have both. relu and relu2: alpha 1, offset 0, limit infinite or a float32. Others are
   refused with REFMOE_BAD_PROFILE. */
typedef struct {
    int32_t name;
    double alpha;
    double limit;
    double offset;
    double cap, up_cap;
} refmoe_activation;

/* The elements of one output that were left open: how many, and the numbers of the first `room` of them, in no
   order. */
typedef struct {
    int64_t count;
    int64_t room;
    int64_t *index;
} refmoe_open;

/* how->kernel, threads and format are read. gate, up (n) -> out (n). */
int refmoe_gated(const refmoe_how *how, const refmoe_activation *act, int64_t n, const float *gate, const float *up,
                 float *out, refmoe_open *open);

/* d_hidden, gate, up (n) -> d_gate, d_up (n) with a list each. */
int refmoe_gated_backward(const refmoe_how *how, const refmoe_activation *act, int64_t n, const float *d_hidden,
                          const float *gate, const float *up, float *d_gate, float *d_up, refmoe_open *open_gate,
                          refmoe_open *open_up);

/* w (n), x (n, m) -> out (n, m). */
int refmoe_scaled_rows(const refmoe_how *how, int64_t n, int64_t m, const float *w, const float *x, float *out,
                       refmoe_open *open);

/* 2^-100 <= c <= 2^100, 1 <= m <= REFMOE_LONGEST_ROW, or REFMOE_BAD_PROFILE. d, z, used (n, m) -> out (n, m); used: 0
   or 1, or NULL for all. */
enum { REFMOE_LONGEST_ROW = 1024 };
int refmoe_softmax(const refmoe_how *how, double c, int64_t n, int64_t m, const float *z, const uint8_t *used,
                   float *out, refmoe_open *open);
int refmoe_softmax_backward(const refmoe_how *how, double c, int64_t n, int64_t m, const float *d, const float *z,
                            const uint8_t *used, float *out, refmoe_open *open);

/* z (n, m) -> out (n). */
int refmoe_log_sum_exp(const refmoe_how *how, int64_t n, int64_t m, const float *z, float *out, refmoe_open *open);

/* cffi: end */

REFMOE_END

#endif
