/* outputs.h: what outputs.c and outputs_copy.c share: the plan of a unit, and where its copies lie. */

#ifndef REFMOE_OUTPUTS_H
#define REFMOE_OUTPUTS_H

#include "product.h"

enum { PLACE_DEPTH = 128 };

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

static inline const struct lanes *lanes_of(const struct product *p) { return &p->kernel->lanes[p->profile]; }

static inline int64_t longest_copy(const struct product *p) { return LEFT_BYTES / packed_item(p); }

/* Of weights that are read where they lie so few k at a time that the second cache holds a run and the next one, even
   of rows that are a power of two apart. */
static inline int64_t depth_of(const struct product *p)
{
    return is_in_place_product(p) ? PLACE_DEPTH : longest_copy(p);
}

static inline int next_run(const struct plan *n, struct run *r)
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

/* ---- copies ---- */

static inline int most_panels(const struct product *p)
{
    return (int)((refmoe_lane_cols(p) + lanes_of(p)->width[0] - 1) / lanes_of(p)->width[0]);
}

static inline int64_t rows_bytes(const struct product *p) { return lanes_of(p)->rows * (int64_t)LEFT_PITCH; }

/* From one panel to the next: not so many bytes that all would lie in the same few lines of the first cache. */
static inline int64_t panel_bytes(const struct product *p)
{
    return lanes_of(p)->width[0] * (int64_t)LEFT_BYTES + 2 * CACHE_LINE;
}

static inline char *left_of(const struct plan *n, int64_t row, const struct run *r)
{
    return n->s->right + (row / n->tall * n->copies + r->copy) * rows_bytes(n->p) + r->k % longest_copy(n->p) * n->item;
}

/* Behind the norms of the columns of one run those of the rows of each, which stay where they are from unit to unit. */
static inline double *row_norm_of(const struct plan *n, int64_t run)
{
    return n->s->norm + most_panels(n->p) * n->pitch + run * whole_tiles(n->u->rows, n->lanes->rows);
}

/* The narrowest shape that holds `count` columns. */
static inline int shape_for(const struct lanes *lanes, int64_t count)
{
    int shape = 0;
    while (shape + 1 < lanes->shapes && count <= lanes->width[shape + 1])
        shape++;
    return shape;
}

static inline char *panel_of(const struct plan *n, int panel) { return n->s->left + panel * panel_bytes(n->p); }

static inline struct rows columns_of(const struct plan *n, const struct run *r, int64_t first)
{
    const struct operand *o = r->o;
    return (struct rows){n->p->kernel, o->b + (first * o->b_col + r->k * o->b_step) * item_of(o->b_format), o->b_format,
                         n->p->across == REFMOE_LANES_ALONG ? o->b_col : o->b_step};
}

/* Of outputs_copy.c: the unit's rows, unless this thread has them; and the panels of a run that tiles do not read where
   they lie. In the exact profile with their norms. */
void refmoe_hold_output_rows(const struct plan *n);
void refmoe_make_output_panels(const struct plan *n, const struct run *r);

#endif
