/* few.h: forward products of experts with few rows, straight from weights as they are stored.

   Such a product uses each weight once or a few times, so it lasts as long as reading the weights does, if nothing is
   copied and nothing waits. A kernel that can do it has a row of functions for it; the others leave it to lanes.c. */

#ifndef REFMOE_FEW_H
#define REFMOE_FEW_H

#include <stdint.h>

struct codes;

enum { MAX_FEW_ROWS = 8, MAX_FEW_COLS = 16, MAX_GROUPED_COLS = 4 * MAX_FEW_COLS };

/* One block: `cols` outputs of each row of x, 1 <= cols <= the kernel's.
     w        `cols` rows of the matrix, `step` bytes apart, each of `length` weights
     x        chain: x[k * rows + i] as float. exact: blocks of as many k as the kernel has columns, twice as many where
              weights are bf16, zeros at the end; in a block row after row, as double
     value    (rows, kernel's cols). chain: float, what the sums start from, then the sums. exact: double, the sums
     largest  exact: the greatest magnitude among the weights of each output
     ahead    weights to be fetched meanwhile, from here on: those of the next block
   Weights of 8 bits and less are the rows of a matrix from `row` on instead, of `expert`; x is as for float32. A
   chain's `largest` is then not 0 where an output has infinite or NaN codes: its sums are no use. */
struct few_block {
    int cols;
    int64_t length, step;
    const char *w, *ahead;
    const void *x;
    void *value;
    double *largest;
    const struct codes *codes;
    int64_t expert, row;
};

typedef void few_function(const struct few_block *block);

/* By profile (exact, chain): the most rows; functions by the format of the weights (float32, bf16, fp16) and the number
   of rows, from 1 on. In the exact profile x is to be given times 2^bf16_exponent where weights are bf16, and the sums
   of an output with an infinite or NaN weight are then no use. */
enum { FEW_KINDS = 3, FEW_MINI = 1 };

/* Vectors of outputs that chains of codes take together: those of one row alone would wait for themselves. */
static inline int few_groups(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

struct small;

/* `paired`: by number of rows, chains of bf16 from +0 that take two k a step (pairs.h), or NULL: blocks of all the
   kernel's columns, where x is words, those of all rows word by word. `largest` is not 0 if a weight is unsafe: then
   the sums are no use. */

/* Codes are of a kind, FEW_MINI or another; x of that one is given times 2^mini_exponent in the exact profile.
   Functions by profile (REFMOE_WIDE: chains of weights that only doubles hold, with x as doubles), kind and rows, of
   any kernel up to MAX_FEW_ROWS. A chain has few_groups(rows) times the kernel's columns. */
struct few {
    int cols, rows[2], bf16_exponent, mini_exponent;
    few_function *run[2][3][MAX_FEW_ROWS + 1], *codes[3][FEW_KINDS][MAX_FEW_ROWS + 1], *paired[MAX_FEW_ROWS + 1];
    int (*kind_of)(const struct small *small);
};

#endif
