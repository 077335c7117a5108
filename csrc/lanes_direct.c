/* lanes_direct.c: the units of lanes.c whose float32 weights are read where they lie: forward products of a chain, from
   its start to its end in one tile.

   What few rows of x leave over costs as little as half a vector: there are tiles of any number of halves up to what
   the registers hold (tile_direct.h). */

#include "lanes.h"

enum { BAND = 24 }; /* rows of weights that all groups meet in turn: whole tiles, whatever their height */

/* Of so many rows the first cache keeps the lines at one place of it, beside what else a tile reads. */
enum { MEETING_ROWS = 6 };

/* As many rows at a time as do not push one another out of the first cache. */
static int tall_of(const struct direct *direct, int64_t step)
{
    return meeting_lines(direct->rows, step) > MEETING_ROWS ? (direct->rows + 1) / 2 : direct->rows;
}

static float *out_of(const struct plan *n, const struct group *g, int64_t col)
{
    return (float *)n->u->out + g->first * n->u->out_row + col;
}

static void start(const struct plan *n, const struct group *g, int64_t col, int rows, float *value)
{
    const float *acc = (const float *)n->u->acc + g->first * n->u->out_row + col;
    memset(value, 0, (size_t)(rows * g->width) * sizeof *value);
    for (int j = 0; j < g->cols; j++)
        for (int i = 0; i < rows; i++)
            value[i * g->width + j] = acc[j * n->u->out_row + i];
}

/* `rows` outputs from `col` on of a group; `ahead`: the weights that are read next. */
static void multiply(const struct plan *n, const struct group *g, int64_t col, int rows, struct direct_run *run)
{
    _Alignas(64) float value[MAX_TILE_ROWS * MAX_DIRECT_COLS], rounded[MAX_TILE_ROWS * MAX_DIRECT_COLS];
    const float *bias = n->u->bias ? (const float *)n->u->bias + col : NULL, *result = value;
    run->right = (const float *)g->right, run->to = value, run->from = n->u->acc ? value : NULL;
    run->ends = n->p->format == REFMOE_FLOAT32, run->bias = run->ends ? bias : NULL;
    if (n->u->acc)
        start(n, g, col, rows, value);
    n->lanes->direct[g->shape].multiply(rows, run);
    if (!run->ends)
        n->p->kernel->settle(rows, g->width, value, bias, NULL, n->p->format, rounded), result = rounded;
    refmoe_store_turned(rows, g->cols, g->width, result, out_of(n, g, col), n->u->out_row);
}

/* The lines of the output that a band will be stored to. */
static void fetch_outputs(const struct plan *n, const struct group *g, int64_t col)
{
    for (int j = 0; j < g->cols; j++)
        for (int64_t at = 0; at < BAND * (int64_t)sizeof(float); at += CACHE_LINE)
            __builtin_prefetch((const char *)(out_of(n, g, col) + j * n->u->out_row) + at, 1, 3);
}

static void multiply_band(const struct plan *n, int64_t first, int64_t end)
{
    const struct operand *o = &n->u->pair[0];
    struct direct_run run = {.length = o->length, .step = o->b_col * (int64_t)sizeof(float)};
    for (const struct group *g = n->group; g < n->group + n->groups; g++) {
        int tall = tall_of(&n->lanes->direct[g->shape], run.step), rows;
        fetch_outputs(n, g, first);
        for (int64_t col = first; col < end; col += rows) {
            rows = (int)lower(tall, end - col);
            run.w = o->b + col * run.step, run.ahead = run.w + rows * run.step;
            if (col + rows == end && g + 1 < n->group + n->groups)
                run.ahead = o->b + first * run.step;
            multiply(n, g, col, rows, &run);
        }
    }
}

void refmoe_compute_direct(const struct plan *n)
{
    for (int64_t first = 0; first < n->u->cols; first += BAND)
        multiply_band(n, first, lower(first + BAND, n->u->cols));
}
