/* refmoe_experts.h: the feed-forward of experts with few rows, in one call, the manual.

     gate = w_gate x + b_gate,   up = w_up x + b_up          grouped_matmul        (refmoe_kernels.h)
     hidden = act(gate, up)                                  refmoe_gated          (refmoe_formulas.h)
     weighted[r,:] = row_weights[r] hidden[r,:]              refmoe_scaled_rows; only with row_weights
     y = w_down hidden + b_down, or w_down weighted + b_down grouped_matmul
     sum[t] = sum_k slot_weights[t,k] y[slot_row[t,k]]       refmoe_weighted_sum   (refmoe_sums.h); only where asked for

   Each stage is stored, with the bits of the function named beside it; the next one reads what is stored. Without a
   gate (its w NULL) hidden = act(up). So it lasts as long as the weights take to be read, once: the threads are called
   once, and read gate and up side by side.

   Few rows: as many as straight reading of the weights is written for, of every expert: at most 8, fewer for some
   kernels, profiles and formats, none for others. Whoever has more calls the functions above one after the other.

   What the activation leaves open (refmoe_formulas.h) ends the call before y: *left_open says of how many elements.
   gate and up are complete then; hidden, weighted, y and the sum hold no answer.

   `how` is that of grouped_matmul: left_format is that of x, right_format that of the three weights, `format` that of
   all results, which are float32. Formats, offsets, biases, scales, profiles, workspace, errors, threads and the
   floating-point environment are as in refmoe_kernels.h; the activation is as in refmoe_formulas.h. No output may
   overlap another array. The report counts the outputs of all products. */

#ifndef REFMOE_EXPERTS_H
#define REFMOE_EXPERTS_H

#include "refmoe_formulas.h"

REFMOE_BEGIN

/* cffi: begin */

/* One linear map: w an array, or a refmoe_scaled; bias (E, rows of the map) or NULL; out (N, rows of the map). */
typedef struct {
    const void *w;
    const float *bias;
    float *out;
} refmoe_linear;

/* What is to be summed: weights, slot_row (tokens, top_k), 1 <= top_k <= 128 -> out (tokens, d). */
typedef struct {
    int64_t tokens;
    int64_t top_k;
    const float *weights;
    const int64_t *slot_row;
    float *out;
} refmoe_slots;

/* x (n, d); gate and up with w (E, f, d) -> out (n, f); row_weights (n) or NULL -> hidden, weighted (n, f), the latter
   NULL exactly where row_weights is; down with w (E, d, f) -> out (n, d); slots, or NULL, -> its out. report may be
   NULL. The status is REFMOE_MANY_ROWS where an expert has more than few rows: then nothing is written. */
int refmoe_feed_forward_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t d, int64_t f, const int64_t *offsets,
                            const void *x, const refmoe_activation *act, const refmoe_linear *gate,
                            const refmoe_linear *up, const float *row_weights, float *hidden, float *weighted,
                            const refmoe_linear *down, const refmoe_slots *slots, int64_t *left_open,
                            refmoe_report *report);

/* cffi: end */

REFMOE_END

#endif
