/* lanes.c: products with rows of x across the lanes of vectors and weights on the left.

   The forward product and the one back to x meet few rows and many weights, and each weight is used once by each row.
   So it is spread over all lanes, and the lanes are rows: they are turned once for an expert and a thread, and stay in
   the second cache. Float32 weights of a chain's forward product are read where they lie, from its start to its end; others
   are copied, a short run of k at a time, for they must be widened, or one distance from row to row of the matrix would map
   them all to the same few lines of the first cache. "Along": the weights of an output lie
   side by side (forward); "across": those of neighbouring outputs do (back to x).                                  */

#include "product.h"

enum { RIGHT_BYTES_CHAIN = 1 << 19, RIGHT_BYTES_EXACT = 1 << 20, UNIT_BANDS = 16 };

/* Some rows of x, as one tile reads them: (length, width), zeros beyond `cols`. */
struct group {
    char *right;
    int first, cols, width, shape;
};

/* A unit's blocks: `bands` at a time meet all groups, `depth` k at a time. */
struct plan {
    const struct product *p;
    const struct unit *u;
    struct scratch *s;
    const struct lanes *lanes;
    int64_t item, depth, length, norm_pitch;
    int groups, bands, along;
    int ends; /* a chain of float32 without bias: its tile has the last word */
    int tall; /* rows of weights that tiles read where they lie, or 0: they are copied */
    struct group group[MAX_LANE_ROWS];
};

/* The matrix rows (along) or columns (across) of one tile. */
struct band {
    int64_t first; /* column of the unit's outputs */
    int rows, index;
};

static const struct lanes *lanes_of(const struct product *p)
{
    return &p->kernel->lanes[p->wide ? REFMOE_WIDE : p->profile];
}

static int64_t depth_of(const struct product *p)
{
    return LEFT_BYTES / left_item(p) / (p->across == REFMOE_LANES_ALONG ? 1 : 2);
}

static int bands_of(const struct product *p) { return p->across == REFMOE_LANES_ALONG ? 1 : UNIT_BANDS; }

/* ---- how much of the output a unit is, and what it needs ---- */

/* Rows of x that one unit may have: as many as the second cache holds turned, or, for many bands, their sums. In the exact
   profile, where copying weights costs twice as much, all of that cache, and it spills a little. */
int64_t refmoe_lane_rows(const struct product *p, int64_t length)
{
    const struct lanes *lanes = lanes_of(p);
    int64_t bytes = p->profile == REFMOE_EXACT ? RIGHT_BYTES_EXACT : RIGHT_BYTES_CHAIN;
    int64_t fit = bytes / (packed_item(p) * (length > 0 ? length : 1)) / lanes->width[0] * lanes->width[0];
    int long_exact = p->profile == REFMOE_EXACT && length > LEFT_BYTES / packed_item(p);
    int waits = p->across == REFMOE_LANES_ACROSS && (p->pair[0].codes || long_exact);
    int64_t most = waits ? MAX_LANE_ROWS / 4 : MAX_LANE_ROWS;
    return fit < lanes->width[0] ? lanes->width[0] : lower(fit, most);
}

/* Weights that pairs.c makes panels of, or that are read where they lie, are taken in pieces as long as may be, if that leaves
   every thread its units: most of them forward in pairs, where the first panel of a unit is turned before any sum. */
int64_t refmoe_lane_cols(const struct product *p)
{
    int64_t cols = p->paired && p->across == REFMOE_LANES_ALONG ? 12 * PAIR_COLS : MAX_UNIT_COLS;
    int64_t least = p->paired ? 3 * PAIR_COLS : 2 * lanes_of(p)->width[0];
    if (!p->paired && !is_in_place_product(p))
        return lanes_of(p)->rows * UNIT_BANDS;
    while (p->threads > 1 && cols > least && p->experts * p->cols < 4 * p->threads * cols)
        cols /= 2;
    return cols;
}

/* Rows that the groups cover: narrow ones together are less than one widest more than what they hold. */
static int64_t covered(const struct product *p, int64_t length)
{
    return refmoe_lane_rows(p, length) + lanes_of(p)->width[0];
}

static int64_t most_blocks(const struct product *p, int64_t length)
{
    return length / depth_of(p) + p->pairs + 1;
}

struct lane_room refmoe_lane_room(const struct product *p, int64_t length)
{
    const struct lanes *lanes = lanes_of(p);
    int64_t outputs = bands_of(p) * lanes->rows * (refmoe_lane_rows(p, length) + 4 * lanes->width[0]);
    int exact = p->profile == REFMOE_EXACT;
    int64_t norms = exact ? covered(p, length) * most_blocks(p, length) : 0;
    return (struct lane_room){.right = covered(p, length) * length * packed_item(p),
                              .left = bands_of(p) * lanes->rows * (int64_t)LEFT_PITCH,
                              .value = outputs * packed_item(p),
                              .error = exact ? outputs * (int64_t)sizeof(double) : 0,
                              .norm = norms * (int64_t)sizeof(double)};
}

/* ---- rows of x ---- */

/* The narrowest shape that holds `count` rows; but rows that fill at most three quarters of the widest are cheaper as
   one half and a rest. */
static int shape_for(const struct lanes *lanes, int64_t count)
{
    int shape = 0;
    while (shape + 1 < lanes->shapes && count <= lanes->width[shape + 1])
        shape++;
    return shape == 0 && lanes->shapes > 1 && 4 * count <= 3 * lanes->width[0] ? 1 : shape;
}

static void cut_groups(struct plan *n)
{
    char *right = n->s->right;
    for (int64_t first = 0; first < n->u->rows; n->groups++) {
        int shape = shape_for(n->lanes, n->u->rows - first), width = n->lanes->width[shape];
        n->group[n->groups] = (struct group){right, (int)first, (int)lower(width, n->u->rows - first), width, shape};
        right += n->length * width * n->item;
        first += width;
    }
}

/* right[k][j] = x[j][k] for the k of one pair. In the exact profile as double, with the norm of each row over each
   block of k; returns how many blocks there are. */
static int64_t turn_pair(const struct plan *n, const struct operand *o, const struct group *g, char *right,
                         double *norm)
{
    int64_t blocks = 0, item = item_of(o->a_format);
    struct rows from = {n->p->kernel, o->a + g->first * o->a_row * item, o->a_format, o->a_row};
    if (n->p->profile == REFMOE_CHAIN) {
        refmoe_turn_chain(o->length, g->cols, g->width, from, (float *)right);
        return 0;
    }
    for (int64_t k = 0; k < o->length; k += n->depth, blocks++, norm += n->norm_pitch, from.x += n->depth * item) {
        refmoe_turn_exact(lower(n->depth, o->length - k), g->cols, g->width, from, (double *)right + k * g->width,
                          norm + g->first);
        n->p->kernel->norms(g->width, norm + g->first);
    }
    return blocks;
}

/* A thread that stays with an expert finds its rows turned already. */
static void hold_rows(struct plan *n)
{
    struct scratch *s = n->s;
    for (int64_t i = 0; i < n->u->rows; i++)
        s->row_grid[i].known = 0;
    if (s->held == n->u->pair[0].a && s->held_rows == n->u->rows)
        return;
    for (int g = 0; g < n->groups; g++) {
        char *right = n->group[g].right;
        double *norm = s->norm;
        for (int q = 0; q < n->p->pairs; q++) {
            norm += turn_pair(n, &n->u->pair[q], &n->group[g], right, norm) * n->norm_pitch;
            right += n->u->pair[q].length * n->group[g].width * n->item;
        }
    }
    s->held = n->u->pair[0].a, s->held_rows = n->u->rows;
}

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

/* ---- weights where they lie ---- */

/* As many rows at a time as neither meet in the same few lines of the first cache nor push one another out of it. */
static int tall_of(const struct product *p, const struct unit *u)
{
    const struct lanes *lanes = lanes_of(p);
    if (!is_direct_product(p))
        return 0;
    int most = meeting_lines(lanes->rows, u->pair[0].b_col * (int64_t)sizeof(float));
    return most > CACHE_WAYS / 2 ? (lanes->rows + 1) / 2 : lanes->rows;
}

static void multiply_direct(const struct plan *n, const struct band *b)
{
    const struct operand *o = &n->u->pair[0];
    struct direct_run run = {.length = o->length, .step = o->b_col * (int64_t)sizeof(float), .pitch = n->lanes->width[0]};
    int begins = !n->u->acc && n->length, last;
    for (int first = 0; first < b->rows; first = last) {
        last = first + (int)lower(n->tall, b->rows - first);
        run.w = o->b + (b->first + first) * run.step;
        for (int g = 0; g < n->groups; g++) {
            run.ahead = run.w + (g + 1 < n->groups ? 0 : (last - first) * run.step);
            run.right = (const float *)n->group[g].right;
            run.to = (float *)value_of(n, b, g) + first * run.pitch, run.from = begins ? NULL : run.to;
            n->lanes->direct[n->group[g].shape](last - first, &run);
        }
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
    n.tall = tall_of(p, u);
    n.ends = !n.tall && p->profile == REFMOE_CHAIN && p->format == REFMOE_FLOAT32 && !p->wide && !u->bias && length;
    cut_groups(&n);
    hold_rows(&n);
    for (int64_t first = 0; first < u->cols; first += n.bands * n.lanes->rows) {
        int bands = cut_bands(&n, first, band);
        for (int i = 0; i < bands * n.lanes->rows; i++)
            s->col_grid[i].known = 0;
        for (int i = 0; i < bands; i++)
            start_band(&n, &band[i]);
        if (n.tall)
            multiply_direct(&n, &band[0]);
        else
            multiply_bands(&n, band, bands);
        for (int i = 0; i < bands; i++)
            finish_band(&n, &band[i]);
    }
}
