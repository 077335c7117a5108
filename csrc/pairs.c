/* pairs.c: the forward product of bf16 weights in the chain profile, two k a step, where the processor has such an
   instruction (pairs_avx512.c) and every factor allows it: the bits are those of lanes.c, which takes over from the
   first output on whose weights, or from all outputs whose rows of x, are not safe (pairs.h).                      */

#include "product.h"

/* The rows of x that one tile reads: (words, width), zeros beyond `cols`. */
struct set {
    uint32_t *right;
    int first, cols, shape;
};

static int64_t words_of(int64_t length) { return (length + 1) / 2; }

int refmoe_is_paired(const struct product *p)
{
    return p->across == REFMOE_LANES_ALONG && p->profile == REFMOE_CHAIN && !p->acc
           && p->pair[0].b_format == REFMOE_BF16 && p->kernel->pairs && p->kernel->pairs->runs_here();
}

_Static_assert(2 * PAIR_PITCH * sizeof(uint32_t) <= LEFT_PITCH, "the room of lanes.c holds the words of two runs");

/* ---- rows of x ---- */

/* Two rows of numbers as one of words, in place. Collects what speaks against it: bits that bf16 does not have, and
   numbers below the guard. */
static uint32_t join(int width, const uint32_t *even, const uint32_t *odd, uint32_t *word)
{
    uint32_t bad = 0;
    for (int j = 0; j < width; j++) {
        uint32_t a = even[j], b = odd[j];
        bad |= (a | b) & 0xFFFF;
        bad |= ((a & 0x7FFFFFFF) - 1 < ((uint32_t)UNSAFE_BELOW << 16) - 1)
               | ((b & 0x7FFFFFFF) - 1 < ((uint32_t)UNSAFE_BELOW << 16) - 1);
        word[j] = (a & 0xFFFF0000u) | b >> 16;
    }
    return bad;
}

/* Codes are turned as words, two k each. */
static int turn_codes(const struct product *p, const struct operand *o, const struct set *g, int width)
{
    struct rows from = {p->kernel, o->a + g->first * o->a_row * 2, REFMOE_FLOAT32, o->a_row / 2};
    int64_t words = words_of(o->length);
    refmoe_turn_chain(words, g->cols, width, from, (float *)g->right);
    return p->kernel->pairs->copy(1, 2 * words * width, (const uint16_t *)g->right, 0, g->right);
}

static int turn_set(const struct product *p, const struct unit *u, const struct set *g)
{
    static const uint32_t none[PAIR_COLS];
    const struct operand *o = &u->pair[0];
    int width = p->kernel->pairs->width[g->shape];
    uint32_t bad = 0;
    if (o->a_format == REFMOE_BF16 && o->length % 2 == 0)
        return turn_codes(p, o, g, width);
    struct rows from = {p->kernel, o->a + g->first * o->a_row * item_of(o->a_format), o->a_format, o->a_row};
    refmoe_turn_chain(o->length, g->cols, width, from, (float *)g->right);
    for (int64_t k = 0; k < o->length; k += 2)
        bad |= join(width, g->right + k * width, k + 1 < o->length ? g->right + (k + 1) * width : none,
                    g->right + k / 2 * width);
    return !bad;
}

static int cut_sets(const struct product *p, const struct unit *u, uint32_t *right, struct set *set)
{
    const struct pairs *pairs = p->kernel->pairs;
    int count = 0;
    for (int64_t first = 0; first < u->rows; first += pairs->width[set[count++].shape]) {
        int shape = 0, cols = (int)lower(PAIR_COLS, u->rows - first);
        while (shape + 1 < PAIR_SHAPES && cols <= pairs->width[shape + 1])
            shape++;
        set[count] = (struct set){right, (int)first, cols, shape};
        right += words_of(u->pair[0].length) * pairs->width[shape];
    }
    return count;
}

/* 0 if these rows, or weights that they have met, are unsafe. */
static int hold(const struct product *p, const struct unit *u, struct scratch *s, const struct set *set, int count)
{
    const char *a = u->pair[0].a;
    if (s->held == a && s->held_rows == u->rows)
        return s->held_pairs;
    s->held = a, s->held_rows = u->rows, s->held_pairs = 1;
    for (int i = 0; i < count && s->held_pairs; i++)
        s->held_pairs = turn_set(p, u, &set[i]);
    if (!s->held_pairs)
        s->held = NULL;
    return s->held_pairs;
}

/* ---- sums ---- */

/* A run of k of one band of weights; the copies of two of them lie side by side. */
struct run {
    int64_t first, k;
    int half, copied; /* which of the copies is its, and whether it is made */
};

static const char *weights_at(const struct operand *o, const struct run *r)
{
    return o->b + (r->first * o->b_col + r->k) * (int64_t)sizeof(uint16_t);
}

/* The run after it: of the same weights, or the first of the next band. */
static struct run after(const struct operand *o, const struct run *r, int64_t run, int most)
{
    int more = r->k + run < o->length;
    return (struct run){more ? r->first : r->first + most, more ? r->k + run : 0, !r->half, 0};
}

/* Runs of at most PAIR_WORDS words, of one length and whole lines if the sum can be cut so. */
static int64_t run_of(int64_t length)
{
    enum { LINE = 32, MOST = 2 * PAIR_WORDS, LEAST = MOST / 2 };
    int64_t runs = (length + MOST - 1) / MOST;
    for (; length % LINE == 0 && runs * LEAST <= length; runs++)
        if (length / LINE % runs == 0)
            return length / runs;
    return MOST;
}

/* A whole band's run is copied while the one before it is summed, if that is as long. */
static int is_copied_ahead(const struct unit *u, const struct run *r, int64_t run, int most)
{
    return run % 32 == 0 && r->first + most <= u->cols && r->k + run <= u->pair[0].length;
}

static uint32_t *copy_of(const struct scratch *s, const struct run *r, int most)
{
    return (uint32_t *)s->left + r->half * most * PAIR_PITCH;
}

/* 0 at the first run of unsafe weights. Leaves `r` at the next band. */
static int multiply_band(const struct product *p, const struct unit *u, struct scratch *s, struct run *r, int rows,
                         const struct set *set, int count)
{
    const struct pairs *pairs = p->kernel->pairs;
    const struct operand *o = &u->pair[0];
    int64_t run = run_of(o->length), step = o->b_col * (int64_t)sizeof(uint16_t), first = r->first;
    memset(s->value, 0, (size_t)(count * pairs->rows * PAIR_COLS) * sizeof(float));
    while (r->first == first) {
        struct run next = after(o, r, run, pairs->rows), beyond = after(o, &next, run, pairs->rows);
        int64_t length = lower(run, o->length - r->k);
        uint32_t *left = copy_of(s, r, pairs->rows);
        if (!r->copied && !pairs->copy(rows, length, (const uint16_t *)weights_at(o, r), o->b_col, left))
            return 0;
        int copies = length == run && is_copied_ahead(u, r, run, pairs->rows)
                     && is_copied_ahead(u, &next, run, pairs->rows);
        struct ahead ahead = {weights_at(o, copies ? &beyond : &next), weights_at(o, &next),
                              copies ? copy_of(s, &next, pairs->rows) : NULL, step};
        next.copied = copies;
        for (int i = 0; i < count; i++, ahead.to = NULL)
            next.copied &= pairs->multiply[set[i].shape](rows, words_of(length), left,
                                                         set[i].right + r->k / 2 * pairs->width[set[i].shape],
                                                         (float *)s->value + i * pairs->rows * PAIR_COLS, &ahead);
        *r = next;
    }
    return 1;
}

static void finish_band(const struct product *p, const struct unit *u, struct scratch *s, int64_t first, int rows,
                        const struct set *set, int count)
{
    _Alignas(64) float result[MAX_TILE_ROWS * PAIR_COLS];
    const float *bias = u->bias ? (const float *)u->bias + first : NULL;
    for (int g = 0; g < count; g++) {
        const float *value = (const float *)s->value + g * p->kernel->pairs->rows * PAIR_COLS;
        p->kernel->settle(rows, PAIR_COLS, value, bias, NULL, p->format, result);
        refmoe_store_turned(rows, set[g].cols, PAIR_COLS, result, (float *)u->out + set[g].first * u->out_row + first,
                            u->out_row);
    }
}

/* The columns of the unit that are done; the others are for lanes.c. */
int64_t refmoe_compute_pairs(const struct product *p, const struct unit *u, struct scratch *s)
{
    struct set set[MAX_LANE_ROWS / PAIR_COLS + 1];
    int count = cut_sets(p, u, (uint32_t *)s->right, set), most = p->kernel->pairs->rows;
    if (s->unsafe == u->pair[0].a || !hold(p, u, s, set, count)) {
        s->unsafe = u->pair[0].a;
        return 0;
    }
    for (struct run r = {0}; r.first < u->cols;) {
        int64_t first = r.first;
        int rows = (int)lower(most, u->cols - first);
        if (!multiply_band(p, u, s, &r, rows, set, count)) {
            s->unsafe = u->pair[0].a, s->held = NULL;
            return first;
        }
        finish_band(p, u, s, first, rows, set, count);
    }
    return u->cols;
}
