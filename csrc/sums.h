/* sums.h: what sums.c and its vector files share. */

#ifndef SUMS_H
#define SUMS_H

#include "tile.h" /* first: it refuses processors before any system header can */

#include "refmoe_sums.h"

enum { FEW_TERMS = 128 }; /* of which a sum takes no memory but the stack's */

/* A factor of one row of output: element j is at[j * col]. */
struct factor {
    const float *at;
    int64_t col;
};

/* One row's term: a product, or a.at alone where b.at is NULL. */
struct part {
    struct factor a, b;
};

/* One row of sums: `count` parts, m columns. `room` holds 2 * count floats for an element that is summed alone. */
struct sum_row {
    int force; /* what how.force sends here */
    int64_t count, m;
    const struct part *part;
    float *room, *out;
};

typedef void sum_function(const struct sum_row *row, int format);

/* The vector functions of one instruction set; sums_template.h makes them. */
struct sums {
    sum_function *sum;
};

extern const struct sums refmoe_sums_portable;
#if defined(__x86_64__)
extern const struct sums refmoe_sums_avx2, refmoe_sums_avx512;
#endif

/* out[j] by the last tiers of rounding.c, which always decide. */
void refmoe_sum_alone(const struct sum_row *row, int64_t j, int format);

/* The checks of refmoe_weighted_sum_f32, for who sums later on. */
int refmoe_check_weighted_sum(const refmoe_how *how, int64_t tokens, int64_t cols, int64_t top_k, int64_t rows,
                              const float *y_rows, const float *weights, const int64_t *slot_row, const float *out);

#endif
