/* pairs.h: the shape of the tiles that take two k a step: products of bf16 by an instruction of the processor. */

#ifndef REFMOE_PAIRS_H
#define REFMOE_PAIRS_H

#include <stdint.h>

/* A word holds two bf16: k in its high half, k + 1 in its low one, since the instruction adds the high product first.
   Below 2^-55 a factor that is not zero is unsafe: from there on every partial sum is zero or a multiple of 2^-124, and
   that the instruction flushes subnormals cannot show. */
enum { UNSAFE_BELOW = (127 - 55) << 7, PAIR_WORDS = 256, PAIR_PITCH = PAIR_WORDS + 16, PAIR_COLS = 32, PAIR_SHAPES = 3 };

/* acc[i,j] += sum over the words of left[i,t] and right[t,j], rows of left PAIR_PITCH apart, of acc PAIR_COLS. Meanwhile
   it fetches what comes next, rows `step` bytes apart. */
typedef void pair_function(int rows, int64_t words, const uint32_t *left, const uint32_t *right, float *acc,
                           const char *ahead, int64_t step);

struct pairs {
    int (*runs_here)(void); /* the processor has the instruction, and it adds as it should */
    int rows;
    int width[PAIR_SHAPES]; /* falling from PAIR_COLS */
    pair_function *multiply[PAIR_SHAPES];
    /* Rows of codes, `step` of them apart, as words; the last of an odd length is filled up with +0. 0: one is unsafe. */
    int (*copy)(int rows, int64_t length, const uint16_t *w, int64_t step, uint32_t *left);
};

#endif
