/* pairs.h: the shape of a tile that takes two k a step: products of bf16 by an instruction of the processor. */

#ifndef REFMOE_PAIRS_H
#define REFMOE_PAIRS_H

#include <stdint.h>

/* A word holds two bf16: k in its high half, k + 1 in its low one, since the instruction adds the high product first.
   Below 2^-55 a factor that is not zero is unsafe: from there on every partial sum is zero or a multiple of 2^-124, and
   that the instruction flushes subnormals cannot show. */
enum { UNSAFE_BELOW = (127 - 55) << 7, PAIR_ROWS = 12, PAIR_COLS = 32, PARTS_OF_LINE = 8,
       STAGED_WORDS = 2 * PAIR_COLS * 16 };

/* to[i,j] = from[i,j] + sum over the words of left[t,i] and right[t,j], t ascending, each t adding two products.
     left    (words, PAIR_ROWS), right (words, PAIR_COLS), dense
     from    (rows, PAIR_COLS), dense; NULL: +0
     to      (rows, PAIR_COLS), rows to_row elements apart
     ends    REFMOE_FLOAT32 or REFMOE_BF16: bias[j] is added (unless NULL), the sum rounded to the format, and NaN
             canonical; negative: nothing of that. past: stores pass by the caches where they can
   Meanwhile it fetches what comes next, a line a step, `lines` of each row from `fetch` on, `step` bytes apart; or it
   turns some parts of the next panel between its sums, which leave it room: a part is four of the words of a line of 16
   rows, and a line of four rows that is staged for those that follow. */
struct turned {
    const char *codes; /* PAIR_COLS rows, whole lines of them, `step` bytes apart */
    const char *soon;  /* as many lines, one after the other, which are fetched meanwhile: four with each part */
    uint32_t *to, *staged; /* STAGED_WORDS */
    int64_t step, lines, first, last, steps; /* the parts, one each so many steps */
};
struct pair_run {
    int64_t words, to_row, lines, step;
    const uint32_t *left, *right;
    const float *from, *bias;
    float *to;
    const char *fetch;
    const struct turned *turned; /* or NULL */
    int ends, past;
};
/* 0: one of the codes that it turned is unsafe. */
typedef int pair_function(int rows, const struct pair_run *run);

/* Numbers as words, k after k, `width` of them for each two k (zeros beyond `count`); the last k of an odd `length`
   meets zero. Along: number (j, k) is x[j * step + k]; across: x[k * step + j]. 0: one is unsafe, or not bf16. */
struct pair_source {
    const void *x;
    int format, count, width; /* REFMOE_FLOAT32, whose numbers may be bf16, or REFMOE_BF16 */
    int64_t length, step;
};
typedef int pair_copy(const struct pair_source *from, uint32_t *to);

struct pairs {
    int (*runs_here)(void); /* the processor has the instruction, and it adds as it should */
    pair_function *multiply;
    pair_copy *along, *across;
};

#endif
