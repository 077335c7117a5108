/* outputs_copy.c: the factors of a unit of outputs.c as its tiles read them: copied rows of x, and weights turned or
   copied into panels as wide as a tile. */

#include "outputs.h"

/* ---- rows of x ---- */

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
void refmoe_hold_output_rows(const struct plan *n)
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
void refmoe_make_output_panels(const struct plan *n, const struct run *r)
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
