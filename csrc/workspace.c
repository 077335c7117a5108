/* workspace.c: the scratch memory of a call: how much it is, and what lies where in one block of it. */

#include "product.h"

/* `at`: the block, or NULL where it is only measured. `used` is -1 once no memory could be as large. */
struct room {
    char *at;
    int64_t used;
};

static int64_t most_bytes(void) { return lower(INT64_C(1) << 46, PTRDIFF_MAX / 2); }

static void *take(struct room *room, int64_t count, int64_t size)
{
    int64_t bytes;
    if (room->used < 0 || __builtin_mul_overflow(count, size, &bytes) || bytes > most_bytes() - room->used) {
        room->used = -1;
        return NULL;
    }
    void *taken = room->at ? room->at + room->used : NULL;
    room->used += whole_tiles(bytes + 1, CACHE_LINE);
    return taken;
}

static void lay_out_lanes(const struct product *p, const struct cut *cut, struct scratch *s, struct room *room)
{
    struct lane_room lanes = refmoe_lane_room(p, cut->length), outputs = refmoe_output_room(p, cut->length);
    if (p->doubles)
        lanes = outputs = refmoe_doubles_room(p, cut->length);
    int64_t few = refmoe_few_room(p, cut->length);
    s->right = take(room, 1, higher(higher(lanes.right, outputs.right), few));
    s->left = take(room, 1, higher(lanes.left, outputs.left));
    s->value = take(room, 1, higher(lanes.value, outputs.value));
    s->error = take(room, 1, higher(lanes.error, outputs.error));
    s->norm = take(room, 1, higher(lanes.norm, outputs.norm));
    if (p->pair[0].codes)
        s->decoded = take(room, cut->length, sizeof(double));
}

static void lay_out_panels(const struct product *p, const struct cut *cut, struct scratch *s, struct room *room)
{
    int64_t length = cut->length + 1, panel = p->tile->cols * (int64_t)p->item;
    s->packed_rows = take(room, length, cut->rows * (int64_t)sizeof(double));
    s->packed_cols = take(room, length + PANELS_BYTES / panel, panel);
}

static void lay_out_pairs(const struct product *p, const struct cut *cut, struct scratch *s, struct room *room)
{
    struct lane_room pairs = refmoe_pairs_room(p, cut);
    s->pair_rows = take(room, 1, pairs.right);
    s->pair_panels = take(room, 1, pairs.left);
    s->pair_staged = take(room, STAGED_WORDS, sizeof(uint32_t));
    s->pair_sums = take(room, 1, pairs.value);
}

static struct scratch *lay_out(const struct product *p, const struct cut *cut, int count, struct room *room)
{
    struct scratch measured, *scratch = take(room, count, sizeof *scratch);
    for (int t = 0; t < count; t++) {
        struct scratch *s = scratch ? &scratch[t] : &measured;
        memset(s, 0, sizeof *s);
        (p->across ? lay_out_lanes : lay_out_panels)(p, cut, s, room);
        if (p->paired)
            lay_out_pairs(p, cut, s, room);
    }
    return scratch;
}

/* With so much more as the first line of the cache may lie behind the block's beginning. */
int64_t refmoe_workspace_bytes(const struct product *p, const struct cut *cut, int count)
{
    struct room room = {NULL, cut->length > most_bytes() ? -1 : 0};
    lay_out(p, cut, count, &room);
    return room.used < 0 ? -1 : room.used + CACHE_LINE;
}

struct scratch *refmoe_lay_out(const struct product *p, const struct cut *cut, int count, void *at)
{
    struct room room = {(char *)at + (-(uintptr_t)at & (CACHE_LINE - 1)), 0};
    return lay_out(p, cut, count, &room);
}
