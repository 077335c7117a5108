/* refmoe_dispatch.h: from slots to rows, the manual. Integers and copies: no number is rounded here. What
   refmoe_kernels.h says about ownership, errors and threads holds here too.

     make_plan   which row each slot gets: expert by expert, in the order of the slots
     permute     x_rows[r] = x[token of row r]
     at_slots    out[t,k]  = table[t, topk_indices[t,k]]

   A slot is a pair (t, k); its number is t * top_k + k. An index of -1 is an unused slot. REFMOE_BAD_OFFSETS for any
   other number that is no id, before anything is written.  */

#ifndef REFMOE_DISPATCH_H
#define REFMOE_DISPATCH_H

#include "refmoe_kernels.h"

REFMOE_BEGIN

/* cffi: begin */

/* topk_indices (tokens, top_k), ids from 0 to experts - 1; kept (tokens, top_k), or NULL for every used slot;
   token_mask (tokens), or NULL for every token
   -> assigned (experts): used slots of tokens of the mask; kept_rows (experts): kept slots; offsets (experts + 1);
   row_slot (tokens * top_k), of which the first offsets[experts] are written; slot_row (tokens, top_k): the slot's row,
   or -1. */
int refmoe_make_plan(int64_t tokens, int64_t top_k, int64_t experts, const int64_t *topk_indices, const uint8_t *kept,
                     const uint8_t *token_mask, int64_t *assigned, int64_t *kept_rows, int64_t *offsets,
                     int64_t *row_slot, int64_t *slot_row);

/* x (tokens, cols), row_slot (rows), slots of `tokens` tokens of top_k each -> x_rows (rows, cols). */
int refmoe_permute(const refmoe_how *how, int64_t rows, int64_t cols, int64_t tokens, int64_t top_k, const float *x,
                   const int64_t *row_slot, float *x_rows);

/* table (tokens, ids), topk_indices (tokens, top_k); kept (tokens, top_k), or NULL for every used slot
   -> used (tokens, top_k): 1 for a kept slot whose id is below `counted`; out (tokens, top_k). At a slot that is not
   used stands what the first used one of its token has; in a token without any, what its first slot has, or id 0. */
int refmoe_at_slots(int64_t tokens, int64_t top_k, int64_t ids, int64_t counted, const float *table,
                    const int64_t *topk_indices, const uint8_t *kept, uint8_t *used, float *out);

/* The number of the first infinity or NaN of a (n), or n. */
int64_t refmoe_first_nonfinite(int64_t n, const float *a);

/* cffi: end */

REFMOE_END

#endif
