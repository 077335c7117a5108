/* outputs.c: products with outputs across the lanes of vectors and rows of x on the left: the tiles of lanes.c with their
   factors exchanged.

   Where many rows meet each weight, or the weights of neighbouring outputs lie side by side (back to x), it is the weights
   that are turned or copied, a run of k at a time, into panels as wide as a tile, and a tile writes whole rows of the
   output. There its sums wait for the next run, too, where nothing but sums is stored: whole tiles of a float32 chain.
   Float32 weights of a chain back to x that few rows meet are read where they lie, fetched a run ahead, and sums wait side
   by side. Rows of x are only copied, once for an expert and a thread.                                              */

#include "product.h"

enum { LONG = 512, PLACE_DEPTH = 128 };

/* A run of k of one pair, at most as long as a copied row may be; its norms are its own. A sum of nothing is one run of
   length 0. copy: which copied rows hold it. */
struct run {
    const struct operand *o;
    int64_t k, length, number, copy;
};

/* Rows of x from `row` on, and the panel that starts at column `col`. */
struct place {
    int64_t row, col;
    int rows, cols, width, shape, number;
    const char *right;
    int64_t right_step;
};

struct plan {
    const struct product *p;
    const struct unit *u;
    struct scratch *s;
    const struct lanes *lanes;
    int64_t item, runs, copies;
    int exact, panels, pitch;
    int tall; /* rows of a tile: as many in each as the unit's allow */
    int in_place; /* whole panels are no copies */
};

static const struct lanes *lanes_of(const struct product *p) { return &p->kernel->lanes[p->profile]; }

static int64_t longest_copy(const struct product *p) { return LEFT_BYTES / packed_item(p); }

/* Of weights that are read where they lie so few k at a time that the second cache holds a run and the next one, even of
   rows that are a power of two apart. */
static int64_t depth_of(const struct product *p)
{
    return is_in_place_product(p) ? PLACE_DEPTH : longest_copy(p);
}

static int64_t most_copies(const struct product *p, int64_t length) { return length / longest_copy(p) + p->pairs; }

static int next_run(const struct plan *n, struct run *r)
{
    r->k += r->length, r->number++;
    if (!r->o)
        *r = (struct run){.o = &n->u->pair[0]};
    else if (r->k == r->o->length)
        r->o++, r->k = 0, r->copy++;
    else
        r->copy += r->k % longest_copy(n->p) == 0;
    r->length = r->o < n->u->pair + n->p->pairs ? lower(depth_of(n->p), r->o->length - r->k) : 0;
    return r->o < n->u->pair + n->p->pairs;
}

static int is_last(const struct plan *n, const struct run *r) { return r->number + 1 == n->runs; }

/* ---- which units, and what they need ---- */

/* Of forward products those whose weights are worth turning: not those of long chains that are read where they lie; and in
   the exact profile what waits for the next run would not stay in cache. */
int refmoe_is_across_outputs(const struct product *p, const struct unit *u)
{
    if (p->pair[0].codes || (p->paired && p->across == REFMOE_LANES_ALONG))
        return 0;
    if (is_direct_product(p) && u->pair[0].length >= LONG)
        return 0;
    int single = p->profile == REFMOE_CHAIN || u->pair[0].length <= depth_of(p);
    return p->across == REFMOE_LANES_ACROSS || (u->rows >= MANY_ROWS && single);
}

static int most_panels(const struct product *p)
{
    return (int)((refmoe_lane_cols(p) + lanes_of(p)->width[0] - 1) / lanes_of(p)->width[0]);
}

static int64_t rows_bytes(const struct product *p) { return lanes_of(p)->rows * (int64_t)LEFT_PITCH; }

/* From one panel to the next: not so many bytes that all would lie in the same few lines of the first cache. */
static int64_t panel_bytes(const struct product *p) { return lanes_of(p)->width[0] * (int64_t)LEFT_BYTES + 2 * CACHE_LINE; }

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

/* ---- rows of x ---- */

static char *left_of(const struct plan *n, int64_t row, const struct run *r)
{
    return n->s->right + (row / n->tall * n->copies + r->copy) * rows_bytes(n->p) + r->k % longest_copy(n->p) * n->item;
}

/* Behind the norms of the columns of one run those of the rows of each, which stay where they are from unit to unit. */
static double *row_norm_of(const struct plan *n, int64_t run)
{
    return n->s->norm + most_panels(n->p) * n->pitch + run * whole_tiles(n->u->rows, n->lanes->rows);
}

static void copy_rows(const struct plan *n, const struct run *r)
{
    copy_function *copy = n->p->kernel->copy_along[n->p->profile][r->o->a_format];
    double *norm = n->exact ? row_norm_of(n, r->number) : NULL;
    if (n->exact)
        memset(norm, 0, (size_t)n->u->rows * sizeof *norm);
    for (int64_t row = 0; row < n->u->rows; row += n->tall)
        copy((int)lower(n->tall, n->u->rows - row), r->length,
             r->o->a + (row * r->o->a_row + r->k) * item_of(r->o->a_format), r->o->a_row, left_of(n, row, r),
             n->exact ? norm + row : NULL);
    if (n->exact)
        n->p->kernel->norms((int)n->u->rows, norm);
}

/* A thread that stays with an expert finds its rows copied already. */
static void hold_rows(const struct plan *n)
{
    struct scratch *s = n->s;
    for (int64_t i = 0; i < n->u->rows; i++)
        s->row_grid[i].known = 0;
    if (s->held == n->u->pair[0].a && s->held_rows == n->u->rows)
        return;
    for (struct run r = {0}; next_run(n, &r);)
        copy_rows(n, &r);
    s->held = n->u->pair[0].a, s->held_rows = n->u->rows;
}

/* ---- weights ---- */

/* The narrowest shape that holds `count` columns. */
static int shape_for(const struct lanes *lanes, int64_t count)
{
    int shape = 0;
    while (shape + 1 < lanes->shapes && count <= lanes->width[shape + 1])
        shape++;
    return shape;
}

static char *panel_of(const struct plan *n, int panel) { return n->s->left + panel * panel_bytes(n->p); }

static struct rows columns_of(const struct plan *n, const struct run *r, int64_t first)
{
    const struct operand *o = r->o;
    return (struct rows){n->p->kernel, o->b + (first * o->b_col + r->k * o->b_step) * item_of(o->b_format), o->b_format,
                         n->p->across == REFMOE_LANES_ALONG ? o->b_col : o->b_step};
}

/* A whole panel of the exact profile is turned as floats: that is faster, and so is the way from there. */
static void turn_whole(const struct plan *n, const struct run *r, struct rows from, double *to, double *squares)
{
    _Alignas(64) float turned[LEFT_BYTES / sizeof(double) * MAX_TILE_COLS];
    refmoe_turn_chain(r->length, n->pitch, n->pitch, from, turned);
    n->p->kernel->copy_panels[REFMOE_EXACT][REFMOE_FLOAT32](1, r->length, turned, n->pitch, to, 0, squares);
}

static void make_panel(const struct plan *n, const struct run *r, int number)
{
    int64_t first = number * n->pitch;
    int cols = (int)lower(n->pitch, n->u->cols - first), width = n->lanes->width[shape_for(n->lanes, cols)];
    struct rows from = columns_of(n, r, first);
    void *to = panel_of(n, number);
    double *squares = n->s->norm + first;
    if (n->p->across == REFMOE_LANES_ACROSS)
        refmoe_copy_columns(r->length, cols, width, from, n->exact, to, squares);
    else if (n->exact && cols == n->pitch)
        turn_whole(n, r, from, to, squares);
    else if (n->exact)
        refmoe_turn_exact(r->length, cols, width, from, to, squares);
    else
        refmoe_turn_chain(r->length, cols, width, from, to);
}

/* Whole panels whose columns lie side by side are copied together. */
static void make_panels(const struct plan *n, const struct run *r)
{
    int copied = n->p->across == REFMOE_LANES_ACROSS ? (int)(n->u->cols / n->pitch) : 0;
    struct rows from = columns_of(n, r, 0);
    if (n->exact)
        memset(n->s->norm, 0, (size_t)(n->panels * n->pitch) * sizeof(double));
    if (copied && r->length && !n->in_place)
        n->p->kernel->copy_panels[n->p->profile][from.format](copied, r->length, from.x, from.step, panel_of(n, 0),
                                                             panel_bytes(n->p), n->exact ? n->s->norm : NULL);
    for (int c = copied; c < n->panels && r->length; c++)
        make_panel(n, r, c);
    if (n->exact)
        n->p->kernel->norms(n->panels * n->pitch, n->s->norm);
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
    run->lines = ((int64_t)((uintptr_t)run->ahead % CACHE_LINE) + t->width * (int64_t)sizeof(float) - 1) / CACHE_LINE + 1;
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

static void meet_rows(const struct plan *n, const struct run *r)
{
    struct place t = {0};
    for (; t.col < n->u->cols; t.col += n->pitch) {
        t.cols = (int)lower(n->pitch, n->u->cols - t.col);
        find_panel(n, r, &t);
        for (t.row = 0; t.row < n->u->rows; t.row += n->tall, t.number++) {
            t.rows = (int)lower(n->tall, n->u->rows - t.row);
            (is_whole(n, &t) ? multiply_whole : multiply_part)(n, &t, r);
        }
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
    hold_rows(&n);
    for (struct run r = {0}; next_run(&n, &r);) {
        make_panels(&n, &r);
        meet_rows(&n, &r);
    }
}
