/* doubles.c: the forward product of the exact profile, where tiles copy the next weights between their terms
   (doubles.h). Rows of x lie across the lanes, turned once for an expert and a thread; 12 outputs at a time meet them,
   DEPTH terms a step.

   The sum of every step begins at +0 and then joins what came before. So what it errs by hangs on norms alone: at most
   half a unit for each term, and for each step, of the sum over the steps of the products of the norms; and those sums
   are a product of two small matrices, which the same tiles compute.                                                */

#include "product.h"

enum { DEPTH = LEFT_BYTES / sizeof(double), MOST_STEPS = DEPTH, PITCH = LEFT_PITCH / sizeof(double) };

/* Some rows of x, as one tile reads them: (length, width), zeros beyond `cols`; their norms, (steps, width). */
struct group {
    int first, cols, width, shape;
    double *right, *norm;
};

/* Outputs first .. first + rows of the unit's, and terms k .. k + length. */
struct step {
    int64_t first, rows, k, length, number;
};

struct plan {
    const struct product *p;
    const struct unit *u;
    struct scratch *s;
    const struct doubles *d;
    int64_t steps; /* of an output */
    int groups;
    struct group group[MAX_LANE_ROWS / DOUBLES_COLS + DOUBLES_SHAPES];
};

static int64_t steps_of(int64_t length) { return (length + DEPTH - 1) / DEPTH; }

int refmoe_is_doubles(const struct product *p)
{
    return p->profile == REFMOE_EXACT && p->across == REFMOE_LANES_ALONG && p->kernel->doubles && !p->pair[0].codes
           && p->pair[0].length > 0 && steps_of(p->pair[0].length) <= MOST_STEPS;
}

struct lane_room refmoe_doubles_room(const struct product *p, int64_t length)
{
    const int64_t rows = p->kernel->doubles->rows, number = (int64_t)sizeof(double), block = rows * DOUBLES_COLS;
    int64_t covered = refmoe_lane_rows(p, length) + 2 * DOUBLES_COLS, groups = covered / DOUBLES_COLS + 1;
    return (struct lane_room){.right = covered * length * number, .left = 2 * rows * LEFT_PITCH,
                              .value = groups * block * number, .error = block * number,
                              .norm = (rows * PITCH + covered * steps_of(length)) * number};
}

/* ---- rows of x ---- */

/* The narrowest shape that holds `count` rows; but three quarters of the widest are cheaper as one half and a rest. */
static int shape_for(const struct doubles *d, int64_t count)
{
    int shape = 0;
    while (shape + 1 < DOUBLES_SHAPES && count <= d->width[shape + 1])
        shape++;
    return shape == 0 && 4 * count <= 3 * d->width[0] ? 1 : shape;
}

static void cut_groups(struct plan *n)
{
    double *right = (double *)n->s->right, *norm = n->s->norm + n->d->rows * PITCH;
    for (int64_t first = 0; first < n->u->rows; n->groups++) {
        int shape = shape_for(n->d, n->u->rows - first), width = n->d->width[shape];
        int cols = (int)lower(width, n->u->rows - first);
        n->group[n->groups] = (struct group){(int)first, cols, width, shape, right, norm};
        right += n->u->pair[0].length * width, norm += n->steps * width;
        first += width;
    }
}

/* A whole width is turned as floats: that is faster, and so is the way from there. */
static void turn(const struct plan *n, const struct group *g, int64_t k, int64_t length, double *squares)
{
    _Alignas(64) float turned[DEPTH * DOUBLES_COLS];
    const struct operand *o = &n->u->pair[0];
    struct rows from = {n->p->kernel, o->a + (g->first * o->a_row + k) * item_of(o->a_format), o->a_format, o->a_row};
    double *to = g->right + k * g->width;
    if (g->width < DOUBLES_COLS) {
        refmoe_turn_exact(length, g->cols, g->width, from, to, squares);
        return;
    }
    refmoe_turn_chain(length, g->cols, g->width, from, turned);
    n->p->kernel->copy_panels[REFMOE_EXACT][REFMOE_FLOAT32](1, length, turned, g->width, to, 0, squares);
}

/* A thread that stays with an expert finds its rows turned already. Their norms are taken times half a unit for each
   addition of the products of a step. */
static void hold_rows(const struct plan *n)
{
    struct scratch *s = n->s;
    const int64_t length = n->u->pair[0].length;
    const double factor = HALF_UNIT * (double)(lower(length, DEPTH) + n->steps);
    for (int64_t i = 0; i < n->u->rows; i++)
        s->row_grid[i].known = 0;
    if (s->held == n->u->pair[0].a && s->held_rows == n->u->rows)
        return;
    for (const struct group *g = n->group; g < n->group + n->groups; g++)
        for (int64_t i = 0; i < n->steps; i++) {
            double squares[DOUBLES_COLS] = {0};
            turn(n, g, i * DEPTH, lower(DEPTH, length - i * DEPTH), squares);
            n->p->kernel->norms(g->width, squares);
            for (int j = 0; j < g->width; j++)
                g->norm[i * g->width + j] = factor * squares[j];
        }
    s->held = n->u->pair[0].a, s->held_rows = n->u->rows;
}

/* ---- weights ---- */

static struct step after(const struct plan *n, const struct step *t)
{
    const struct unit *u = n->u;
    int more = t->number + 1 < n->steps;
    struct step next = {more ? t->first : t->first + n->d->rows, 0, more ? t->k + DEPTH : 0, 0,
                        more ? t->number + 1 : 0};
    next.rows = lower(n->d->rows, u->cols - next.first);
    next.length = lower(DEPTH, u->pair[0].length - next.k);
    return next;
}

static const char *weights_of(const struct plan *n, const struct step *t)
{
    const struct operand *o = &n->u->pair[0];
    return o->b + (t->first * o->b_col + t->k) * item_of(o->b_format);
}

/* The norms of a step's weights stand in one column of rows PITCH apart. */
static void keep_norms(const struct plan *n, const struct step *t, double *squares)
{
    n->p->kernel->norms((int)t->rows, squares);
    for (int i = 0; i < t->rows; i++)
        n->s->norm[i * PITCH + t->number] = squares[i];
}

static void copy_weights(const struct plan *n, const struct step *t, double *left)
{
    const struct operand *o = &n->u->pair[0];
    double squares[MAX_TILE_ROWS] = {0};
    n->p->kernel->copy_along[REFMOE_EXACT][o->b_format]((int)t->rows, t->length, weights_of(n, t), o->b_col, left,
                                                        squares);
    keep_norms(n, t, squares);
}

/* Squares in float32 with fewer than 2^8 roundings each, none of them of a subnormal number; or, if such cannot be
   ruled out, those of the copy, again. */
static void take_norms(const struct plan *n, const struct step *t, const float *made, const double *left)
{
    static const double ROUNDED = 1 + 0x1p-16, LEAST = 0x1p-100;
    double squares[MAX_TILE_ROWS];
    n->d->gather((int)t->rows, made, squares);
    for (int i = 0; i < t->rows; i++, left += PITCH) {
        int safe = squares[i] > LEAST && squares[i] < FLT_MAX;
        squares[i] *= safe ? ROUNDED : 0.0;
        for (int64_t k = 0; k < t->length && !safe; k++)
            squares[i] = k == 0 ? left[k] * left[k] : squares[i] + left[k] * left[k];
    }
    keep_norms(n, t, squares);
}

/* The next step of whole tiles is copied while this one is summed, if it needs no more pieces than this one has
   terms. */
static int is_copied_ahead(const struct plan *n, const struct step *t, const struct step *next)
{
    return t->rows == n->d->rows && next->rows == n->d->rows && next->length % DOUBLES_PIECE == 0
           && n->d->rows * next->length / DOUBLES_PIECE <= t->length;
}

/* ---- sums ---- */

/* acc of a block, turned, or its magnitudes times a factor. */
static void take_acc(const struct plan *n, const struct step *t, const struct group *g, double factor, double *to)
{
    const float *acc = (const float *)n->u->acc + g->first * n->u->out_row + t->first;
    memset(to, 0, (size_t)(t->rows * DOUBLES_COLS) * sizeof *to);
    for (int j = 0; j < g->cols; j++, acc += n->u->out_row)
        for (int i = 0; i < t->rows; i++)
            to[i * DOUBLES_COLS + j] = factor == 0 ? (double)acc[i] : factor * magnitude(acc[i]);
}

static void finish(const struct plan *n, const struct step *t, const struct group *g, double *value)
{
    _Alignas(64) float result[MAX_TILE_ROWS * DOUBLES_COLS];
    double *error = n->s->error;
    struct doubles_run run = {.length = n->steps, .left = n->s->norm, .right = g->norm, .to = error,
                              .from = n->u->acc ? error : NULL};
    struct sums_block block = {.rows = (int)t->rows, .cols = g->cols, .pitch = DOUBLES_COLS, .turned = 1,
                               .row = g->first, .col = t->first, .value = value, .error = error};
    if (n->u->acc)
        take_acc(n, t, g, HALF_UNIT * (double)(n->steps + 1), error);
    n->d->multiply[g->shape](block.rows, REFMOE_FLOAT32, &run);
    refmoe_decide(n->p, n->u, n->s, &block, result);
    refmoe_store_turned(block.rows, block.cols, DOUBLES_COLS, result,
                        (float *)n->u->out + g->first * n->u->out_row + t->first, n->u->out_row);
}

/* Meanwhile the next step's weights are copied, unless copy.to is NULL. */
static void take_step(const struct plan *n, const struct step *t, const double *left, struct doubles_copy copy)
{
    double *value = (double *)n->s->value;
    const int64_t size = n->d->rows * DOUBLES_COLS;
    for (const struct group *g = n->group; g < n->group + n->groups; g++, value += size) {
        const int begins = t->number == 0 && !n->u->acc;
        struct doubles_run run = {t->length, left, g->right + t->k * g->width, begins ? NULL : value, value, copy};
        if (t->number == 0 && n->u->acc)
            take_acc(n, t, g, 0, value);
        n->d->multiply[g->shape]((int)t->rows, n->u->pair[0].b_format, &run);
        copy = (struct doubles_copy){0};
        if (t->number + 1 == n->steps)
            finish(n, t, g, value);
    }
}

/* ---- the unit ---- */

void refmoe_compute_doubles(const struct product *p, const struct unit *u, struct scratch *s)
{
    struct plan n = {.p = p, .u = u, .s = s, .d = p->kernel->doubles, .steps = steps_of(u->pair[0].length)};
    const int64_t item = item_of(u->pair[0].b_format), step = u->pair[0].b_col * item, copy_size = n.d->rows * PITCH;
    double *left = (double *)s->left, *other = left + copy_size;
    int copied = 0;
    cut_groups(&n);
    hold_rows(&n);
    struct step t = {.rows = lower(n.d->rows, u->cols), .length = lower(DEPTH, u->pair[0].length)};
    while (t.first < u->cols) {
        _Alignas(64) float squares[MAX_TILE_ROWS * DOUBLES_PIECE] = {0};
        struct step next = after(&n, &t), beyond = after(&n, &next);
        for (int i = 0; i < t.rows && t.number == 0; i++)
            s->col_grid[i].known = 0;
        if (!copied)
            copy_weights(&n, &t, left);
        copied = is_copied_ahead(&n, &t, &next);
        take_step(&n, &t, left,
                  (struct doubles_copy){weights_of(&n, &next), weights_of(&n, copied ? &beyond : &next),
                                        copied ? other : NULL, squares,
                                        (copied ? next.length : DEPTH) / DOUBLES_PIECE, step});
        if (copied)
            take_norms(&n, &next, squares, other);
        double *swap = left;
        left = other, other = swap;
        t = next;
    }
}
