/* tiers.h: what the tiers behind the rounding test (rounding.c) share: the factors of a term, and their own names. */

#ifndef REFMOE_TIERS_H
#define REFMOE_TIERS_H

#include "tile.h"

static inline float left_of(const struct vector_pair *v, int64_t k)
{
    return number_at(v->a, v->a_format, k * v->a_step);
}

static inline double right_of(const struct vector_pair *v, int64_t k)
{
    return v->b_format == REFMOE_FLOAT64 ? ((const double *)v->b)[k] : number_at(v->b, v->b_format, k * v->b_step);
}

/* What is left of a factor after its first 29 bits; nothing beside an infinity, which has met these. */
static inline double low_part(float left, double right)
{
    return is_finite(left) && is_finite(right) ? right - high_part(right) : 0.0;
}

/* A double times a float32 is two terms. */
static inline int64_t count_terms(const struct terms *terms)
{
    int64_t count = (terms->bias != NULL) + (terms->acc != NULL);
    for (int p = 0; p < terms->pairs; p++)
        count += terms->pair[p].length * (terms->pair[p].b_format == REFMOE_FLOAT64 ? 2 : 1);
    return count;
}

/* grid.c: whether the float64 sum of these terms, in any order, is exact. */
int refmoe_on_grid(const struct terms *terms, const struct grid *row, const struct grid *col);

/* compensated.c: 1 if the sum with its errors decides *out. */
int refmoe_compensated(const struct terms *terms, int format, float *out);

/* accumulator.c: always decides. */
float refmoe_accumulate(const struct terms *terms, int format);

#endif
