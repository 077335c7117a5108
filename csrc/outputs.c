/* outputs.c: products with outputs across the lanes of vectors and rows of x on the left: the tiles of lanes.c with
   their factors exchanged.

   Where many rows meet each weight, or the weights of neighbouring outputs lie side by side (back to x), it is the
   weights that are turned or copied, a run of k at a time, into panels as wide as a tile, and a tile writes whole rows
   of the output. There its sums wait for the next run, too, where nothing but sums is stored: whole tiles of a float32
   chain. Float32 weights of a chain back to x that few rows meet are read where they lie, fetched a run ahead, and sums
   wait side by side. Rows of x are only copied, once for an expert and a thread. */

#include "outputs.h"

enum { LONG = 512 };

static int is_last(const struct plan *n, const struct run *r) { return r->number + 1 == n->runs; }

/* ---- which units, and what they need ---- */

/* Of forward products those whose weights are worth turning: not those of long chains that are read where they lie; and
   in the exact profile what waits for the next run would not stay in cache. */
int refmoe_is_across_outputs(const struct product *p, const struct unit *u)
{
    if (p->pair[0].codes || (p->paired && p->across == REFMOE_LANES_ALONG))
        return 0;
    if (is_direct_product(p) && u->pair[0].length >= LONG)
        return 0;
    int single = p->profile == REFMOE_CHAIN || u->pair[0].length <= depth_of(p);
    return p->across == REFMOE_LANES_ACROSS || (u->rows >= MANY_ROWS && single);
}

static int64_t most_copies(const struct product *p, int64_t length) { return length / longest_copy(p) + p->pairs; }

struct lane_room refmoe_output_room(const struct product *p, int64_t length)
{
    const struct lanes *lanes = lanes_of(p);
    int64_t rows = whole_tiles(refmoe_lane_rows(p, length), lanes->rows), columns = most_panels(p) * lanes->width[0];
    int64_t sums = length / depth_of(p) + p->pairs > 1 ? rows * columns : lanes->rows * lanes->width[0];
    int exact = p->profile == REFMOE_EXACT;
    return (struct lane_room){.right = rows / lanes->rows * most_copies(p, length) * rows_bytes(p),
                              .left = most_panels(p) * panel_bytes(p),
                              .value = sums * packed_item(p),
                              .error = exact ? sums * (int64_t)sizeof(double) : 0,
                              .norm = exact ? (most_copies(p, length) * rows + columns) * (int64_t)sizeof(double) : 0};
}

/* ---- sums ---- */

static float *out_of(const struct plan *n, const struct place *t)
{
    return (float *)n->u->out + t->row * n->u->out_row + t->col;
}

static const float *acc_of(const struct plan *n, const struct place *t)
{
    return n->u->acc ? (const float *)n->u->acc + t->row * n->u->out_row + t->col : NULL;
}

/* Where a tile's sums wait that may not wait in the output. */
static char *value_of(const struct plan *n, const struct place *t)
{
    return n->s->value + (n->runs > 1 ? t->number : 0) * n->lanes->rows * n->pitch * n->item;
}

static double *error_of(const struct plan *n, const struct place *t)
{
    return n->s->error + (n->runs > 1 ? t->number : 0) * n->lanes->rows * n->pitch;
}

static int is_whole(const struct plan *n, const struct place *t)
{
    return !n->exact && t->cols == t->width && n->p->format == REFMOE_FLOAT32;
}

static void start(const struct plan *n, const struct place *t)
{
    char *value = value_of(n, t);
    memset(value, 0, (size_t)(t->rows * n->pitch * n->item));
    if (n->exact)
        memset(error_of(n, t), 0, (size_t)(t->rows * n->pitch) * sizeof(double));
    for (int i = 0; i < t->rows && n->u->acc; i++)
        for (int j = 0; j < t->cols; j++)
            if (n->exact)
                ((double *)value)[i * n->pitch + j] = 0.0 + (double)acc_of(n, t)[i * n->u->out_row + j];
            else
                ((float *)value)[i * n->pitch + j] = acc_of(n, t)[i * n->u->out_row + j];
}

static void settle(const struct plan *n, const struct place *t, float *result)
{
    float bias[MAX_TILE_COLS] = {0};
    if (n->u->bias)
        memcpy(bias, (const float *)n->u->bias + t->col, (size_t)t->cols * sizeof *bias);
    n->p->kernel->settle(t->rows, n->pitch, (const float *)value_of(n, t), NULL, n->u->bias ? bias : NULL, n->p->format,
                         result);
}

static void decide(const struct plan *n, const struct place *t, float *result)
{
    struct sums_block block = {.rows = t->rows, .cols = t->cols, .pitch = n->pitch, .row = t->row, .col = t->col,
                               .slot = (int)t->col, .value = (double *)value_of(n, t), .error = error_of(n, t)};
    refmoe_decide(n->p, n->u, n->s, &block, result);
}

static void finish(const struct plan *n, const struct place *t)
{
    _Alignas(64) float result[MAX_TILE_ROWS * MAX_TILE_COLS];
    (n->exact ? decide : settle)(n, t, result);
    for (int i = 0; i < t->rows; i++)
        memcpy(out_of(n, t) + i * n->u->out_row, result + i * n->pitch, (size_t)t->cols * sizeof *result);
}

/* Where the weights of the next run begin: in this pair, the next one, or the next unit's first; and that has the next
   columns of these weights, or the first ones of the next expert's. */
static const char *after(const struct plan *n, const struct run *r)
{
    const struct operand *o = r->o, *first = n->u->pair;
    int64_t next = r->k + r->length, behind = first->first + n->u->cols;
    if (next < o->length)
        return o->b + next * o->b_step * item_of(o->b_format);
    if (o + 1 < first + n->p->pairs)
        return o[1].b;
    next = behind < n->p->cols ? n->u->cols : first->length * first->b_step - first->first;
    return first->b + next * item_of(first->b_format);
}

/* Fetched meanwhile: weights of the next run, or of the next unit's first, shared out among the first tiles; then, and
   where weights are few, the lines that the tile is about to write. */
static void look_ahead(const struct plan *n, const struct place *t, const struct run *r, struct lane_run *run)
{
    const struct operand *o = r->o;
    int64_t item = item_of(o->b_format);
    int64_t lines = (n->u->cols * item + CACHE_LINE - 1) / CACHE_LINE, row = t->number * (r->length / lines);
    run->ahead = (const char *)out_of(n, t);
    run->step = n->u->out_row * (int64_t)sizeof(float), run->ahead_rows = t->rows;
    run->lines = ((int64_t)((uintptr_t)run->ahead % CACHE_LINE) + t->width * (int64_t)sizeof(float) - 1) / CACHE_LINE
                 + 1;
    if (n->runs == 1 || n->p->across == REFMOE_LANES_ALONG || row >= depth_of(n->p) || !r->length)
        return;
    run->lines = lines, run->step = o->b_step * item, run->ahead_rows = INT32_MAX;
    run->ahead = after(n, r) + row * run->step;
}

static struct lane_run run_of(const struct plan *n, const struct place *t, const struct run *r)
{
    struct lane_run run = {.length = r->length, .left = left_of(n, t->row, r), .right = t->right,
                           .right_step = t->right_step};
    look_ahead(n, t, r, &run);
    return run;
}

/* From acc or +0 to the output. */
static void multiply_whole(const struct plan *n, const struct place *t, const struct run *r)
{
    struct lane_run run = run_of(n, t, r);
    run.ends = is_last(n, r);
    run.from = r->number == 0 ? acc_of(n, t) : out_of(n, t), run.from_row = n->u->out_row;
    run.to = out_of(n, t), run.to_row = n->u->out_row;
    if (n->in_place && r->number > 0)
        run.from = value_of(n, t), run.from_row = n->pitch;
    if (n->in_place && !run.ends)
        run.to = value_of(n, t), run.to_row = n->pitch;
    run.bias = run.ends && n->u->bias ? (const float *)n->u->bias + t->col : NULL;
    n->lanes->along[t->shape](t->rows, &run);
}

static void multiply_part(const struct plan *n, const struct place *t, const struct run *r)
{
    struct lane_run run = run_of(n, t, r);
    if (r->number == 0)
        start(n, t);
    if (n->exact)
        n->p->kernel->grow(t->rows, (const double *)value_of(n, t), HALF_UNIT * (double)r->length,
                           row_norm_of(n, r->number) + t->row, n->s->norm + t->col, error_of(n, t));
    run.from = run.to = value_of(n, t), run.from_row = run.to_row = n->pitch;
    n->lanes->along[t->shape](t->rows, &run);
    if (is_last(n, r))
        finish(n, t);
}

/* ---- the unit ---- */

/* The panel at column t->col: copied, or whole and where it lies. */
static void find_panel(const struct plan *n, const struct run *r, struct place *t)
{
    int lies = n->in_place && t->cols == n->pitch;
    t->shape = shape_for(n->lanes, t->cols), t->width = n->lanes->width[t->shape];
    t->right = lies ? columns_of(n, r, t->col).x : panel_of(n, (int)(t->col / n->pitch));
    t->right_step = lies ? r->o->b_step : t->width;
}

/* Copied panels stay in the first cache while all rows pass; of those that lie elsewhere it is the rows that stay. */
static void meet_rows(const struct plan *n, const struct run *r)
{
    const int tiles = (int)((n->u->rows + n->tall - 1) / n->tall);
    struct place t = {0};
    for (; t.number < tiles * n->panels; t.number++) {
        t.col = n->pitch * (n->in_place ? t.number % n->panels : t.number / tiles);
        t.row = n->tall * (n->in_place ? t.number / n->panels : t.number % tiles);
        t.cols = (int)lower(n->pitch, n->u->cols - t.col), t.rows = (int)lower(n->tall, n->u->rows - t.row);
        find_panel(n, r, &t);
        (is_whole(n, &t) ? multiply_whole : multiply_part)(n, &t, r);
    }
}

void refmoe_compute_outputs(const struct product *p, const struct unit *u, struct scratch *s)
{
    const struct lanes *lanes = lanes_of(p);
    struct plan n = {.p = p, .u = u, .s = s, .lanes = lanes, .item = packed_item(p), .pitch = lanes->width[0],
                     .exact = p->profile == REFMOE_EXACT,
                     .panels = (int)((u->cols + lanes->width[0] - 1) / lanes->width[0])};
    const int64_t tiles = (u->rows + lanes->rows - 1) / lanes->rows;
    struct run all = {0};
    n.tall = (int)((u->rows + tiles - 1) / tiles), n.in_place = is_in_place_product(p);
    while (next_run(&n, &all))
        n.runs++;
    n.copies = all.copy;
    for (int64_t j = 0; j < u->cols; j++)
        s->col_grid[j].known = 0;
    refmoe_hold_output_rows(&n);
    for (struct run r = {0}; next_run(&n, &r);) {
        refmoe_make_output_panels(&n, &r);
        meet_rows(&n, &r);
    }
}
