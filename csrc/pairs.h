/* pairs.h: the shape of the tiles that take two k a step: products of bf16 by an instruction of the processor. */

#ifndef REFMOE_PAIRS_H
#define REFMOE_PAIRS_H

#include <stdint.h>

/* A word holds two bf16: k in its high half, k + 1 in its low one, since the instruction adds the high product first.
   Below 2^-55 a factor that is not zero is unsafe: from there on every partial sum is zero or a multiple of 2^-124, and
   that the instruction flushes subnormals cannot show. */
enum { UNSAFE_BELOW = (127 - 55) << 7, PAIR_WORDS = 128, PAIR_PITCH = PAIR_WORDS + 8, PAIR_COLS = 32, PAIR_SHAPES = 3 };

/* What a tile does beside its sums, rows `step` bytes apart: it fetches the lines of the rows at `fetch`, and unless `to`
   is NULL, it copies as many words as it sums of each of the rows of codes at `codes`, as copy of `pairs` does. Only
   whole tiles copy, whole lines of 16 words. */
struct ahead {
    const char *fetch, *codes;
    uint32_t *to;
    int64_t step;
};

/* acc[i,j] += sum over the words of left[i,t] and right[t,j], rows of left PAIR_PITCH apart, of acc PAIR_COLS. 0: a code
   that was copied is unsafe. */
typedef int pair_function(int rows, int64_t words, const uint32_t *left, const uint32_t *right, float *acc,
                          const struct ahead *ahead);

struct pairs {
    int (*runs_here)(void); /* the processor has the instruction, and it adds as it should */
    int rows;
    int width[PAIR_SHAPES]; /* falling from PAIR_COLS */
    pair_function *multiply[PAIR_SHAPES];
    /* Rows of codes, `step` of them apart, as words; the last of an odd length is filled up with +0. 0: one is unsafe. */
    int (*copy)(int rows, int64_t length, const uint16_t *w, int64_t step, uint32_t *left);
};

#endif
