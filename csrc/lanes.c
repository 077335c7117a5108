/* lanes.c: products with rows of x across the lanes of vectors and weights on the left.

   The forward product and the one back to x meet few rows and many weights, and each weight is used once by each row.
   So it is spread over all lanes, and the lanes are rows: they are turned once for an expert and a thread, and stay in
   the second cache. Float32 weights of a chain's forward product are read where they lie (lanes_direct.c); others are
   copied, a short run of k at a time, for they must be widened, or one distance from row to row of the matrix would map
   them all to the same few lines of the first cache. "Along": the weights of an output lie side by side (forward);
   "across": those of neighbouring outputs do (back to x).                                                            */

#include "lanes.h"

/* The matrix rows (along) or columns (across) of one tile. */
struct band {
    int64_t first; /* column of the unit's outputs */
    int rows, index;
};

/* ---- sums ---- */

static int64_t block_at(const struct plan *n, const struct band *b, int group)
{
    return (b->index * n->groups + group) * n->lanes->rows * n->lanes->width[0];
}

static void *value_of(const struct plan *n, const struct band *b, int group)
{
    return n->s->value + block_at(n, b, group) * n->item;
}

static double *error_of(const struct plan *n, const struct band *b, int group)
{
    return n->s->error + block_at(n, b, group);
}

static double acc_at(const struct plan *n, const struct band *b, int64_t row, int i)
{
    return ((const float *)n->u->acc)[row * n->u->out_row + b->first + i];
}

/* Without acc a chain starts in its first tile. */
static void start_band(const struct plan *n, const struct band *b)
{
    int pitch = n->lanes->width[0];
    if (n->p->profile == REFMOE_CHAIN && !n->u->acc && n->length)
        return;
    int64_t size = n->groups * n->lanes->rows * pitch;
    memset(value_of(n, b, 0), 0, (size_t)(size * n->item));
    if (n->p->profile == REFMOE_EXACT)
        memset(error_of(n, b, 0), 0, (size_t)size * sizeof(double));
    for (int g = 0; g < n->groups && n->u->acc; g++)
        for (int i = 0; i < b->rows; i++)
            for (int j = 0; j < n->group[g].cols; j++) {
                double acc = acc_at(n, b, n->group[g].first + j, i);
                if (n->p->profile == REFMOE_EXACT)
                    ((double *)value_of(n, b, g))[i * pitch + j] = 0.0 + acc;
                else
                    ((float *)value_of(n, b, g))[i * pitch + j] = (float)acc;
            }
}

/* A run of k of one pair: where its factors begin, and the norms of its rows. */
struct run {
    const struct operand *o;
    int64_t k, length, before; /* before: k of the pairs before this one */
    const double *norm;
};

static const char *weights_of(const struct run *r, int64_t k, int64_t first)
{
    return r->o->b + (first * r->o->b_col + k) * item_of(r->o->b_format);
}

/* What the next call will read: the next run of these rows or the next band's first. */
static const char *ahead_of(const struct plan *n, const struct run *r, const struct band *b)
{
    int64_t next = r->k + n->depth;
    if (r->o->codes)
        return n->s->left;
    return next < r->o->length ? weights_of(r, next, b->first) : weights_of(r, 0, b->first + n->lanes->rows);
}

/* Weights that are codes are decoded as they are copied; of matrices the rows are outputs (along), or the columns. */
static void copy_codes(const struct plan *n, const struct run *r, int64_t first, int count, double *squares)
{
    int64_t output = r->o->first + first;
    struct codes_run run = {r->o->codes, r->o->expert, n->along ? output : r->k, n->along ? r->k : output, r->length,
                            count, n->along, left_item(n->p) == sizeof(double)};
    n->p->kernel->copy_codes(&run, n->s->left, n->p->profile == REFMOE_EXACT ? squares : NULL);
}

static void copy_weights(const struct plan *n, const struct run *r, int64_t first, int count, double *squares)
{
    const struct kernel *kernel = n->p->kernel;
    if (r->o->codes) {
        copy_codes(n, r, first, count, squares);
        return;
    }
    kernel->copy_along[n->p->profile][r->o->b_format](count, r->length, weights_of(r, r->k, first), r->o->b_col,
                                                      n->s->left, squares);
}

static void multiply_run(const struct plan *n, const struct run *r, const struct band *band, int bands)
{
    const struct kernel *kernel = n->p->kernel;
    lane_function *const *multiply = n->along ? n->lanes->along : n->lanes->across;
    int64_t first = band[0].first, count = band[bands - 1].first + band[bands - 1].rows - first;
    int64_t step = r->o->codes ? 0 : r->o->b_col * item_of(r->o->b_format);
    double norm[UNIT_BANDS * MAX_TILE_ROWS] = {0}, terms = (double)(r->length + (r->o->codes != NULL));
    copy_weights(n, r, first, (int)count, norm);
    if (n->p->profile == REFMOE_EXACT)
        kernel->norms((int)count, norm);
    int begins = n->p->profile == REFMOE_CHAIN && !n->u->acc && r->before + r->k == 0;
    struct lane_run run = {.length = r->length, .from_row = n->lanes->width[0], .to_row = n->lanes->width[0],
                           .step = step, .lines = n->depth * (int64_t)sizeof(float) / CACHE_LINE,
                           .ahead_rows = n->lanes->rows,
                           .ends = n->ends && r->before + r->k + r->length == n->length};
    for (const struct band *b = band; b < band + bands; b++) {
        run.left = n->s->left + (b->first - first) * r->length * left_item(n->p), run.ahead = ahead_of(n, r, b);
        for (int g = 0; g < n->groups; g++) {
            const struct group *group = &n->group[g];
            run.right = group->right + (r->before + r->k) * group->width * n->item, run.right_step = group->width;
            run.to = value_of(n, b, g), run.from = begins ? NULL : run.to;
            if (n->p->profile == REFMOE_EXACT)
                kernel->grow(b->rows, run.to, HALF_UNIT * terms, norm + (b->first - first), r->norm + group->first,
                             error_of(n, b, g));
            multiply[group->shape](b->rows, &run);
        }
    }
}

static void multiply_bands(const struct plan *n, const struct band *band, int bands)
{
    struct run r = {.norm = n->s->norm};
    for (int q = 0; q < n->p->pairs; q++) {
        r.o = &n->u->pair[q];
        for (r.k = 0; r.k < r.o->length; r.k += n->depth, r.norm += n->norm_pitch) {
            r.length = lower(n->depth, r.o->length - r.k);
            multiply_run(n, &r, band, bands);
        }
        r.before += r.o->length;
    }
}

/* ---- rounding ---- */

static void finish_exact(const struct plan *n, const struct band *b, int group, float *result)
{
    const struct sums_block block = {.rows = b->rows, .cols = n->group[group].cols, .pitch = n->lanes->width[0],
                                     .turned = 1, .slot = b->index * n->lanes->rows, .row = n->group[group].first,
                                     .col = b->first, .value = value_of(n, b, group), .error = error_of(n, b, group)};
    refmoe_decide(n->p, n->u, n->s, &block, result);
}

/* A chain that ended in its tile is stored as it stands. */
static void finish_band(const struct plan *n, const struct band *b)
{
    _Alignas(64) float room[MAX_TILE_ROWS * MAX_TILE_COLS];
    const float *bias = n->u->bias ? (const float *)n->u->bias + b->first : NULL;
    for (int g = 0; g < n->groups; g++) {
        const float *result = n->ends ? value_of(n, b, g) : room;
        if (n->p->profile == REFMOE_EXACT)
            finish_exact(n, b, g, room);
        else if (!n->ends)
            n->p->kernel->settle(b->rows, n->lanes->width[0], value_of(n, b, g), bias, NULL, n->p->format, room);
        refmoe_store_turned(b->rows, n->group[g].cols, n->lanes->width[0], result,
                            (float *)n->u->out + n->group[g].first * n->u->out_row + b->first, n->u->out_row);
    }
}

/* ---- the unit ---- */

static int cut_bands(const struct plan *n, int64_t first, struct band *band)
{
    int bands = 0;
    for (; bands < n->bands && first < n->u->cols; bands++, first += n->lanes->rows)
        band[bands] = (struct band){first, (int)lower(n->lanes->rows, n->u->cols - first), bands};
    return bands;
}

void refmoe_compute_lanes(const struct product *p, const struct unit *u, struct scratch *s)
{
    int64_t length = total_length(p, u);
    struct plan n = {.p = p, .u = u, .s = s, .lanes = lanes_of(p), .item = packed_item(p), .depth = depth_of(p),
                     .length = length, .norm_pitch = covered(p, length), .bands = bands_of(p),
                     .along = p->across == REFMOE_LANES_ALONG};
    struct band band[UNIT_BANDS];
    n.ends = p->profile == REFMOE_CHAIN && p->format == REFMOE_FLOAT32 && !p->wide && !u->bias && length;
    refmoe_cut_groups(&n);
    refmoe_hold_groups(&n);
    if (is_direct_product(p)) {
        refmoe_compute_direct(&n);
        return;
    }
    for (int64_t first = 0; first < u->cols; first += n.bands * n.lanes->rows) {
        int bands = cut_bands(&n, first, band);
        for (int i = 0; i < bands * n.lanes->rows; i++)
            s->col_grid[i].known = 0;
        for (int i = 0; i < bands; i++)
            start_band(&n, &band[i]);
        multiply_bands(&n, band, bands);
        for (int i = 0; i < bands; i++)
            finish_band(&n, &band[i]);
    }
}
