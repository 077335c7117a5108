/* refmoe_attention.h: causal attention of the chain profile, the manual.

   Between the product that makes queries, keys and values and the one that reads the context, head by head:

     refmoe_attention           z = (q root) k^T + bias,  weights = softmax(z),  context = weights v
     refmoe_attention_backward  d_p = d_context v^T,  d_z = (d_p - sum_j(d_p_j p_j)) p,  p = weights
                                d_q = (d_z k) root,  d_k = d_z^T (q root),  d_v = weights^T d_context

   over the places up to a token's own; weights and d_z are +0 elsewhere. Every product is one chain of fused
   multiply-adds over all terms, ascending from +0, as refmoe_grouped_matmul makes it in the profile chain; weights are
   those of refmoe_softmax; what else is written is rounded once for each operation, sum_j in the order of the row from
   +0. Terms that +0 makes zeros are left out where that cannot change a bit.

   qkv (batch size, 3 heads width): a token's queries, keys, values, each head by head; context (batch size, heads
   width); weights (batch heads size, size); bias (heads, size, size) or NULL.
   Arrays are dense float32 and no output may overlap another array. how->kernel and threads are read. Errors, threads
   and the floating-point environment are as in refmoe_kernels.h.  */

#ifndef REFMOE_ATTENTION_H
#define REFMOE_ATTENTION_H

#include "refmoe_formulas.h"

REFMOE_BEGIN

/* cffi: begin */

/* Sequences, tokens of each, heads, numbers of a head. */
typedef struct {
    int64_t batch, size, heads, width;
} refmoe_heads;

/* Floats that `room` must have for these sizes and how->threads; -1 for sizes that are refused. */
int64_t refmoe_attention_room(const refmoe_how *how, const refmoe_heads *heads);

/* heads->size at most REFMOE_LONGEST_ROW, or REFMOE_BAD_PROFILE. `open`: rows of weights that stay open, as in
   refmoe_softmax; if there is one, the outputs hold no answer. */
int refmoe_attention(const refmoe_how *how, const refmoe_heads *heads, float root, const float *qkv, const float *bias,
                     float *weights, float *context, float *room, refmoe_open *open);

/* -> d_qkv, of the shape of qkv. */
int refmoe_attention_backward(const refmoe_how *how, const refmoe_heads *heads, float root, const float *qkv,
                              const float *weights, const float *d_context, float *d_qkv, float *room);

/* cffi: end */

REFMOE_END

#endif
