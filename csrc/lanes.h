/* lanes.h: what lanes.c and lanes_rows.c share: the plan of a unit. */

#ifndef REFMOE_LANES_H
#define REFMOE_LANES_H

#include "product.h"

enum { UNIT_BANDS = 16 };

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
    struct group group[MAX_LANE_ROWS];
};

static inline const struct lanes *lanes_of(const struct product *p)
{
    return &p->kernel->lanes[p->wide ? REFMOE_WIDE : p->profile];
}

static inline int64_t depth_of(const struct product *p)
{
    return LEFT_BYTES / left_item(p) / (p->across == REFMOE_LANES_ALONG ? 1 : 2);
}

static inline int bands_of(const struct product *p) { return p->across == REFMOE_LANES_ALONG ? 1 : UNIT_BANDS; }

/* Rows that the groups cover: narrow ones together are less than one widest more than what they hold. */
static inline int64_t covered(const struct product *p, int64_t length)
{
    return refmoe_lane_rows(p, length) + lanes_of(p)->width[0];
}

/* Of lanes_rows.c: the unit's rows in groups, one a tile; and these turned, unless this thread has them. */
void refmoe_cut_groups(struct plan *n);
void refmoe_hold_groups(struct plan *n);

/* Of lanes_direct.c: the unit, from weights where they lie. */
void refmoe_compute_direct(const struct plan *n);

#endif
