/* refmoe_written.h: formulas of + - * / and square roots in float32, the manual.

   Every written operation is rounded once, in the order in which it is written here; sum_j adds the numbers of a row in
   their order, from +0. So whoever carries out the same operations has the same bits, NaN aside: every NaN is one
   value.

     refmoe_rms_norm           rms = sqrt(sum_j(x_j x_j) / m + eps),  normed = x / rms,  out = normed w
     refmoe_rms_norm_backward  s = d w,  along = sum_j(s_j normed_j) / m,  d_x = (s - normed along) / rms,
                               d_gain = d normed
     refmoe_adamw              p = p decay,  m = m beta1 + g (1 - beta1),  v = v beta2 + (g (1 - beta2)) g,
                               p = p - (m rate) / (sqrt(v) root + eps)

   The constants are what refmoe/lab/optimisers.py says. Arrays are dense float32; no output may overlap another array,
   but for what adamw changes in place. Only how->kernel and how->threads are read. Errors, threads and the
   floating-point environment are as in refmoe_kernels.h; there is no workspace.  */

#ifndef REFMOE_WRITTEN_H
#define REFMOE_WRITTEN_H

#include "refmoe_kernels.h"

REFMOE_BEGIN

/* cffi: begin */

/* x (n, m), w (m) -> rms (n), normed, out (n, m); m >= 1. */
int refmoe_rms_norm(const refmoe_how *how, int64_t n, int64_t m, float eps, const float *x, const float *w, float *rms,
                    float *normed, float *out);

/* d, normed (n, m), rms (n), w (m) -> d_x, d_gain (n, m); m >= 1. */
int refmoe_rms_norm_backward(const refmoe_how *how, int64_t n, int64_t m, const float *d, const float *normed,
                             const float *rms, const float *w, float *d_x, float *d_gain);

typedef struct {
    float decay, beta1, rest1, beta2, rest2; /* rest: 1 - beta */
    float rate, root, eps;
} refmoe_adamw_constants;

/* g (n); p, m, v (n) are changed in place. */
int refmoe_adamw(const refmoe_how *how, const refmoe_adamw_constants *constants, int64_t n, const float *g, float *p,
                 float *m, float *v);

/* cffi: end */

REFMOE_END

#endif
