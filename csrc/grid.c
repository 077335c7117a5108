/* grid.c: the grid test of the exact profile: sums of which float64 loses nothing. */

#include "tiers.h"

/* The lowest bit of `count` numbers and their greatest magnitude, without a branch: the bit alone, as a float, has the
   exponent that is wanted. */
static void widen_run(struct grid *grid, int count, const float *x)
{
    int32_t quantum = grid->quantum;
    uint32_t largest = 0;
    for (int i = 0; i < count; i++) {
        uint32_t bits = bits_of_float(x[i]) & INT32_MAX, field = bits >> 23, fraction = bits & 0x7FFFFF;
        uint32_t significand = fraction | (field ? 0x800000 : 0);
        int32_t low = (int32_t)(significand & -significand);
        int32_t at = (int32_t)(bits_of_float((float)low) >> 23) - 127 + (int32_t)(field ? field : 1) - 150;
        at = low ? at : INT32_MAX / 4;
        quantum = at < quantum ? at : quantum;
        largest = bits > largest ? bits : largest;
    }
    double size = float_of_bits(largest);
    grid->quantum = quantum;
    grid->largest = size > grid->largest || size != size ? size : grid->largest;
}

/* The same of doubles above 2^-1022. */
static void widen_doubles(struct grid *grid, int64_t count, const double *x)
{
    for (int64_t i = 0; i < count; i++) {
        uint64_t bits = bits_of_double(x[i]), significand = (bits << 12 >> 12) | UINT64_C(1) << 52;
        int32_t at = (int32_t)(bits >> 52 & 0x7FF) - 1075 + __builtin_ctzll(significand);
        if (x[i] != 0 && at < grid->quantum)
            grid->quantum = at;
        if (magnitude(x[i]) > grid->largest || x[i] != x[i])
            grid->largest = magnitude(x[i]);
    }
}

/* What vectors take together, widened or gathered over their steps. */
enum { GRID_RUN = 256 };

static void span(const struct kernel *kernel, int64_t count, const float *x, struct grid *grid)
{
    int64_t done = kernel->span ? kernel->span(count, x, grid) : 0;
    widen_run(grid, (int)(count - done), x + done);
}

static void span_steps(const struct kernel *kernel, int64_t count, const char *v, int format, int64_t step,
                       struct grid *grid)
{
    float run[GRID_RUN];
    int64_t item = format == REFMOE_FLOAT32 ? (int64_t)sizeof(float) : (int64_t)sizeof(uint16_t);
    for (int64_t k = 0, length; k < count; k += length, v += length * step * item) {
        length = count - k < GRID_RUN ? count - k : GRID_RUN;
        if (step == 1)
            kernel->widen[format](length, v, run);
        for (int64_t i = 0; i < length && step != 1; i++)
            run[i] = number_at(v, format, i * step);
        span(kernel, length, run, grid);
    }
}

/* The grid of the first (second = 0) or second factors of all pairs together. */
struct grid refmoe_grid(const struct kernel *kernel, int count, const struct vector_pair *pair, int second)
{
    struct grid grid = {1, INT32_MAX / 4, 0.0};
    for (int p = 0; p < count; p++) {
        const struct vector_pair *v = &pair[p];
        const char *x = second ? v->b : v->a;
        int format = second ? v->b_format : v->a_format;
        int64_t step = second ? v->b_step : v->a_step;
        if (format == REFMOE_FLOAT64) {
            widen_doubles(&grid, v->length, (const double *)v->b);
            continue;
        }
        span_steps(kernel, v->length, x, format, step, &grid);
    }
    return grid;
}

/* True if every partial sum, in any order, is a multiple of 2^q below 2^(q+53), so that float64 holds it. The
   factor of the left side outweighs the roundings made in computing it. */
int refmoe_on_grid(const struct terms *terms, const struct grid *row, const struct grid *col)
{
    struct grid rest = {1, row->quantum + col->quantum, 0.0};
    double sum = (double)count_terms(terms) * row->largest * col->largest;
    if (row->largest == 0 || col->largest == 0)
        rest.quantum = INT32_MAX / 4;
    if (terms->bias)
        widen_run(&rest, 1, terms->bias), sum += magnitude(*terms->bias);
    if (terms->acc)
        widen_run(&rest, 1, terms->acc), sum += magnitude(*terms->acc);
    return rest.quantum > 512 || sum * (1 + 0x1p-40) < power_of_two(rest.quantum + 53);
}
