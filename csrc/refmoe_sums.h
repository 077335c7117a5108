/* refmoe_sums.h: exact sums of few terms, element by element, the manual. What refmoe_kernels.h says about bits,
   ownership, errors and threads holds here too.

     sum            out[i,j] = round(sum_q a_q[i,j] b_q[i,j])
     weighted_sum   out[t,j] = round(sum_k weights[t,k] y_rows[slot_row[t,k],j])
     row_products   out[i]   = sum_k a[i,k] b[i,k]

   A sum is the exact real value, rounded once to how->format, whatever how->profile says; how->force
   sends each element at least to that tier. Exact zero is +0, a value
   that rounds to zero keeps its sign, infinities of both signs and NaN give the canonical NaN. Row products obey
   how->profile (REFMOE_EXACT or REFMOE_CHAIN), as the grouped product of a matrix of one row does.  */

#ifndef REFMOE_SUMS_H
#define REFMOE_SUMS_H

#include "refmoe_kernels.h"

REFMOE_BEGIN

/* cffi: begin */

/* Numbers of a table, read as an array (n, m): element (i, j) is array[r * row + j * col], where r is index[i * step],
   or i without an index. `row` and `col` count elements; col is 0 or 1. With an index the table has `rows` rows, and an
   index of -1 stands for a row of zeros. */
typedef struct {
    const float *array;
    int64_t row;
    int64_t col;
    const int64_t *index;
    int64_t step;
    int64_t rows;
} refmoe_view;

/* A term of a sum: a, or where b.array is not NULL the product a b. A row of zeros makes the whole term zero, whatever
   the other factor is. */
typedef struct {
    refmoe_view a;
    refmoe_view b;
} refmoe_term;

/* terms >= 1 of them -> out (n, m), dense, which may not overlap what is read. Up to 128 terms take no memory but the
   stack's; more take 40 bytes each and thread, of how->workspace as the products do (refmoe_kernels.h). REFMOE_BAD_SIZE
   also for a col other than 0 and 1; REFMOE_BAD_OFFSETS for an index outside its table. */
int refmoe_sum_f32(const refmoe_how *how, int64_t n, int64_t m, int64_t terms, const refmoe_term *term, float *out);

/* The sum of such terms: weights, slot_row (tokens, top_k), top_k >= 1; y_rows (rows, cols) -> out (tokens, cols), all
   dense. A slot_row of -1 makes its term zero, whatever the weight is. Memory and statuses as above. */
int refmoe_weighted_sum_f32(const refmoe_how *how, int64_t tokens, int64_t cols, int64_t top_k, int64_t rows,
                            const float *y_rows, const float *weights, const int64_t *slot_row, float *out);

/* a, b (n, m), dense -> out (n): out[i] = the sum of a[i,k] b[i,k] as a chain of fused multiply-adds, k ascending from
   +0, as refmoe_grouped_matmul makes it of n experts of a row and one output each. how->kernel and threads are read. */
int refmoe_row_products(const refmoe_how *how, int64_t n, int64_t m, const float *a, const float *b, float *out);

/* cffi: end */

REFMOE_END

#endif
