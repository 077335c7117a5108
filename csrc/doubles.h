/* doubles.h: the shape of the tiles of doubles.c: sums in doubles that copy the next weights between their terms. */

#ifndef REFMOE_DOUBLES_H
#define REFMOE_DOUBLES_H

#include <stdint.h>

enum { DOUBLES_COLS = 16, DOUBLES_SHAPES = 3, DOUBLES_PIECE = 16 };

/* What is copied beside the sums: of each row of weights, `step` bytes apart from `from` on, so many pieces of 16
   numbers to rows LEFT_PITCH bytes apart, and their squares are added to the row's 16 at `squares`, in float32. The
   same of the rows from `next` on is fetched. to NULL: it is only fetched. */
struct doubles_copy {
    const char *from, *next;
    double *to;
    float *squares;
    int64_t pieces, step;
};

/* to[i,j] = from[i,j] + sum_k left[i,k] right[k,j], k ascending; the sum begins at +0, and joins `from` (NULL: nothing)
   at its end. left: rows LEFT_PITCH bytes apart; right (length, width), dense; from and to: rows DOUBLES_COLS apart.
   Only whole tiles copy, at most as many pieces as there are terms. */
struct doubles_run {
    int64_t length;
    const double *left, *right, *from;
    double *to;
    struct doubles_copy copy;
};

/* format: of the weights that are copied. */
typedef void doubles_function(int rows, int format, const struct doubles_run *run);

/* squares[i] = the sum of the 16 that a tile added to row i. */
typedef void gather_function(int rows, const float *from, double *squares);

struct doubles {
    int rows;
    int width[DOUBLES_SHAPES]; /* falling from DOUBLES_COLS */
    doubles_function *multiply[DOUBLES_SHAPES];
    gather_function *gather;
};

#endif
