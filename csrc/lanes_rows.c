/* lanes_rows.c: how many rows of x a unit of lanes.c has, and these as its tiles read them: turned, in groups. */

#include "lanes.h"

enum { RIGHT_BYTES_CHAIN = 1 << 19, RIGHT_BYTES_EXACT = 1 << 20 };

/* ---- how much of the output a unit is, and what it needs ---- */

/* Rows of x that one unit may have: as many as the second cache holds turned, or, for many bands, their sums. In the
   exact profile, where copying weights costs twice as much, all of that cache, and it spills a little. */
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

/* Weights that pairs.c makes panels of, or that are read where they lie, are taken in pieces as long as may be, if that
   leaves every thread its units: most of them forward in pairs, where the first panel of a unit is turned before any
   sum. */
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

/* Of tiles that read weights where they lie: as few groups as may be, all of about one width. */
static int direct_shape_for(const struct lanes *lanes, int64_t count)
{
    const struct direct *direct = lanes->direct;
    int shapes = 0, shape = 0;
    while (shapes < MAX_DIRECT && direct[shapes].width)
        shapes++;
    int64_t groups = (count + direct[shapes - 1].width - 1) / direct[shapes - 1].width;
    while (direct[shape].width * groups < count)
        shape++;
    return shape;
}

void refmoe_cut_groups(struct plan *n)
{
    const int direct = is_direct_product(n->p);
    char *right = n->s->right;
    for (int64_t first = 0; first < n->u->rows; n->groups++) {
        int shape = (direct ? direct_shape_for : shape_for)(n->lanes, n->u->rows - first);
        int width = direct ? n->lanes->direct[shape].width : n->lanes->width[shape];
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
void refmoe_hold_groups(struct plan *n)
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
