/* pairs.c: products of bf16 in the chain profile, two k a step, where the processor has such an instruction
   (pairs_avx512.c) and every factor allows it: the bits are those of lanes.c, outputs.c and unit.c, which take over
   from the first outputs on whose second factors, or from all outputs whose first factors, are not safe (pairs.h).

   Outputs lie across the lanes of vectors in all three products, so that a tile wastes none of an expert's rows. The
   first factor (rows of x or of d) is made words once for an expert and a thread; of the second, panels as wide as a
   tile are made words a run at a time: turned (forward), or two neighbouring k woven (back to x, and weight
   gradients). */

#include "product.h"

enum { PANELS_WORDS = 1024, WOVEN_WORDS = 128 };

/* How a unit is cut. Rows lie in `tiles` of `size`, the last perhaps fewer. */
struct plan {
    const struct product *p;
    const struct unit *u;
    struct scratch *s;
    int64_t words; /* of a sum */
    int tiles, size;
};

/* A run of k of one operand, and the panels that its words are multiplied with; `before`: words before its first. */
struct run {
    const struct operand *o;
    int64_t k, length, before, col;
    int half, made, safe; /* where the panels are; whether they are made, and safe */
};

static int64_t words_of(int64_t length) { return (length + 1) / 2; }

static int is_along(const struct product *p) { return p->across == REFMOE_LANES_ALONG; }

static int64_t run_words(const struct product *p) { return is_along(p) ? PANELS_WORDS : WOVEN_WORDS; }

static int panels_at_once(const struct product *p) { return (int)(PANELS_WORDS / run_words(p)); }

/* ---- which products, and what they need ---- */

/* The way back to weights reads numbers that may be bf16 only where it stores such. */
int refmoe_is_paired(const struct product *p)
{
    const struct operand *o = &p->pair[0];
    int narrow = o->b_format == REFMOE_BF16;
    int numbers = p->sum_rows && p->format == REFMOE_BF16 && o->b_format == REFMOE_FLOAT32;
    return p->profile == REFMOE_CHAIN && !p->acc && (narrow || numbers) && o->a_format != REFMOE_FP16
           && p->kernel->pairs && p->kernel->pairs->runs_here();
}

struct lane_room refmoe_pairs_room(const struct product *p, const struct cut *cut)
{
    int64_t rows = cut->rows + PAIR_ROWS, words = cut->length / 2 + MAX_PAIRS, item = (int64_t)sizeof(uint32_t);
    int64_t run = lower(words, run_words(p)), panels = panels_at_once(p);
    return (struct lane_room){.right = rows * words * item,
                              .left = 2 * run * panels * PAIR_COLS * item,
                              .value = rows * panels * PAIR_COLS * item};
}

/* ---- the first factor ---- */

static uint32_t *left_of(const struct plan *n, int tile, int64_t word)
{
    return n->s->pair_rows + (tile * n->words + word) * PAIR_ROWS;
}

static int rows_of(const struct plan *n, int tile) { return (int)lower(n->size, n->u->rows - tile * n->size); }

static int copy_rows(const struct plan *n)
{
    const struct pairs *pairs = n->p->kernel->pairs;
    int safe = 1;
    for (int i = 0; i < n->tiles && safe; i++) {
        int64_t before = 0;
        for (const struct operand *o = n->u->pair; o < n->u->pair + n->p->pairs; before += words_of(o++->length)) {
            const char *x = o->a + i * n->size * o->a_row * item_of(o->a_format);
            struct pair_source from = {x, o->a_format, rows_of(n, i), PAIR_ROWS, o->length,
                                       n->p->sum_rows ? o->a_step : o->a_row};
            safe &= (n->p->sum_rows ? pairs->across : pairs->along)(&from, left_of(n, i, before));
        }
    }
    return safe;
}

/* A thread that stays with these rows finds them copied. 0: they are unsafe, or weights that they met. */
static int hold_rows(const struct plan *n)
{
    struct scratch *s = n->s;
    const char *a = n->u->pair[0].a;
    if (s->pair_held != a || s->pair_count != n->u->rows)
        s->pair_held = a, s->pair_count = n->u->rows, s->pair_safe = copy_rows(n);
    return s->pair_safe;
}

/* ---- the second factor ---- */

static int panels_of(const struct plan *n, const struct run *r)
{
    return (int)higher(lower(panels_at_once(n->p), (n->u->cols - r->col + PAIR_COLS - 1) / PAIR_COLS), 1);
}

static int is_last(const struct plan *n, const struct run *r) { return r->before + words_of(r->length) == n->words; }

static struct run begin_at(const struct plan *n, const struct operand *o, int64_t k, int64_t before, int64_t col)
{
    int64_t length = lower(2 * run_words(n->p), o->length - k);
    return (struct run){.o = o, .k = k, .length = length, .before = before, .col = col};
}

/* The run after it: of the same panels, of the next operand, or the first of the next panels. */
static struct run after(const struct plan *n, const struct run *r)
{
    int64_t before = r->before + words_of(r->length);
    struct run next;
    if (is_last(n, r))
        next = begin_at(n, n->u->pair, 0, 0, r->col + panels_of(n, r) * PAIR_COLS);
    else if (r->k + r->length < r->o->length)
        next = begin_at(n, r->o, r->k + r->length, before, r->col);
    else
        next = begin_at(n, r->o + 1, 0, before, r->col);
    next.half = !r->half;
    return next;
}

static uint32_t *panel_of(const struct plan *n, const struct run *r, int panel)
{
    int64_t half = lower(n->words, run_words(n->p)) * panels_at_once(n->p);
    return n->s->pair_panels + (r->half * half + panel * words_of(r->length)) * PAIR_COLS;
}

static const char *factor_at(const struct run *r, int64_t col)
{
    return r->o->b + (r->k * r->o->b_step + col * r->o->b_col) * item_of(r->o->b_format);
}

static int make_panels(const struct plan *n, const struct run *r)
{
    const struct pairs *pairs = n->p->kernel->pairs;
    const struct operand *o = r->o;
    int safe = 1;
    for (int c = 0; c < panels_of(n, r); c++) {
        int64_t col = r->col + c * PAIR_COLS;
        struct pair_source from = {factor_at(r, col), o->b_format, (int)lower(PAIR_COLS, n->u->cols - col), PAIR_COLS,
                                   r->length, is_along(n->p) ? o->b_col : o->b_step};
        safe &= (is_along(n->p) ? pairs->along : pairs->across)(&from, panel_of(n, r, c));
    }
    return safe;
}

/* Columns of weights that follow one another from the unit's first on: its own, or those of all later units, too. */
static int64_t columns_ahead(const struct plan *n)
{
    const struct operand *o = n->u->pair;
    return n->p->cols % PAIR_COLS ? n->u->cols : (n->p->experts - o->expert) * n->p->cols - o->first;
}

/* Whether a panel is turned while the run before it is summed: one of whole lines of whole vectors. */
static int is_turned_ahead(const struct plan *n, const struct run *r)
{
    return is_along(n->p) && r->col + PAIR_COLS <= columns_ahead(n) && r->length % (CACHE_LINE / 2) == 0;
}

/* The unit's first run; its panel is made already if the unit before it ended where this one begins. */
static struct run first_run(const struct plan *n)
{
    struct run r = begin_at(n, n->u->pair, 0, 0, 0);
    if (n->s->pair_next == factor_at(&r, 0))
        r.made = 1, r.half = n->s->pair_next_half, r.safe = n->s->pair_next_safe;
    n->s->pair_next = NULL;
    return r;
}

/* The share of tile number `tile` of turning the panel of run `next` during `words` words. */
static struct turned share_of(const struct plan *n, const struct run *next, const struct run *soon, int tile,
                              int64_t words)
{
    int64_t lines = next->length * item_of(next->o->b_format) / CACHE_LINE, parts = lines * PARTS_OF_LINE;
    int64_t first = parts * tile / n->tiles, last = parts * (tile + 1) / n->tiles;
    return (struct turned){factor_at(next, next->col), factor_at(soon, soon->col), panel_of(n, next, 0),
                           n->s->pair_staged, next->o->b_col * item_of(next->o->b_format), lines, first, last,
                           higher(words / higher(last - first, 1), 1)};
}

/* Fetched during a tile: its share of the lines that panels will soon be made of. */
static void look_ahead(const struct plan *n, const struct run *r, int number, struct pair_run *run)
{
    const struct operand *o = r->o;
    int64_t item = item_of(o->b_format), step = (is_along(n->p) ? o->b_col : o->b_step) * item;
    int64_t bytes = (is_along(n->p) ? r->length : lower(panels_at_once(n->p) * PAIR_COLS, n->u->cols)) * item;
    int whole = bytes == step; /* rows of a panel that follow one another are one */
    run->lines = whole ? INT32_MAX : (bytes + CACHE_LINE - 1) / CACHE_LINE;
    run->step = step;
    run->fetch = factor_at(r, r->col)
                 + number * (whole ? run->words * CACHE_LINE : run->words / run->lines * step);
}

/* ---- sums ---- */

/* What is stored before so many bytes more are stored, or weights read, is pushed out of the last cache before anybody
   reads it: it need not be read into the caches to be stored. */
enum { PAST_BYTES = 1 << 24 };

static int is_past_caches(const struct product *p)
{
    int64_t stored = (p->sum_rows ? p->experts : 1) * p->rows * p->cols * (int64_t)sizeof(float);
    int64_t read = p->sum_rows ? 0 : lower(p->experts, p->rows) * p->cols * p->pair[0].length * item_of(REFMOE_BF16);
    return stored + read > PAST_BYTES;
}

static void finish(const struct plan *n, int64_t row, int64_t col, int rows, int cols, const float *value)
{
    _Alignas(64) float result[PAIR_ROWS * PAIR_COLS], bias[PAIR_COLS] = {0};
    const struct unit *u = n->u;
    if (u->bias)
        memcpy(bias, (const float *)u->bias + col, (size_t)cols * sizeof *bias);
    n->p->kernel->settle(rows, PAIR_COLS, value, NULL, u->bias ? bias : NULL, n->p->format, result);
    for (int i = 0; i < rows; i++)
        memcpy((float *)u->out + (row + i) * u->out_row + col, result + i * PAIR_COLS, (size_t)cols * sizeof *result);
}

/* One tile of rows and one panel; what is whole ends in the tile. */
static int multiply(const struct plan *n, const struct run *r, int tile, int panel, struct pair_run *run)
{
    int64_t row = tile * n->size, col = r->col + panel * PAIR_COLS;
    int rows = rows_of(n, tile), cols = (int)lower(PAIR_COLS, n->u->cols - col), last = is_last(n, r);
    float *value = n->s->pair_sums + (panel * n->tiles + tile) * PAIR_ROWS * PAIR_COLS;
    int ends = last && cols == PAIR_COLS && n->p->format != REFMOE_FP16;
    run->left = left_of(n, tile, r->before), run->right = panel_of(n, r, panel);
    run->from = r->before ? value : NULL;
    run->ends = ends ? n->p->format : -1;
    run->bias = ends && n->u->bias ? (const float *)n->u->bias + col : NULL;
    run->to = ends ? (float *)n->u->out + row * n->u->out_row + col : value;
    run->to_row = ends ? n->u->out_row : PAIR_COLS;
    int safe = n->p->kernel->pairs->multiply(rows, run);
    if (last && !ends)
        finish(n, row, col, rows, cols, value);
    return safe;
}

/* All rows with the panels of a run, while the next one's panel is turned. */
static void multiply_run(const struct plan *n, const struct run *r, struct run *next)
{
    struct pair_run run = {.words = words_of(r->length), .past = is_past_caches(n->p)};
    struct run soon = after(n, next);
    next->made = is_turned_ahead(n, next), next->safe = 1;
    for (int c = 0; c < panels_of(n, r); c++)
        for (int i = 0; i < n->tiles; i++) {
            struct turned turned = share_of(n, next, &soon, i, run.words);
            run.turned = next->made ? &turned : NULL;
            look_ahead(n, next->made ? &soon : next, c * n->tiles + i, &run);
            next->safe &= multiply(n, r, i, c, &run);
        }
}

static int64_t compute(const struct product *p, const struct unit *u, struct scratch *s)
{
    struct plan n = {.p = p, .u = u, .s = s, .tiles = (int)((u->rows + PAIR_ROWS - 1) / PAIR_ROWS)};
    for (int q = 0; q < p->pairs; q++)
        n.words += words_of(u->pair[q].length);
    if (!n.words || !u->rows)
        return 0;
    n.size = (int)((u->rows + n.tiles - 1) / n.tiles);
    if (!hold_rows(&n))
        return 0;
    struct run r = first_run(&n);
    for (struct run next; r.col < u->cols; r = next) {
        if (!(r.made ? r.safe : make_panels(&n, &r))) {
            s->pair_safe = 0;
            return r.col;
        }
        next = after(&n, &r);
        multiply_run(&n, &r, &next);
    }
    if (r.made)
        s->pair_next = factor_at(&r, r.col), s->pair_next_half = r.half, s->pair_next_safe = r.safe;
    return u->cols;
}

/* The columns of the unit that are done; the others are for those who take one k a step. */
int64_t refmoe_compute_pairs(const struct product *p, const struct unit *u, struct scratch *s)
{
    int64_t done = compute(p, u, s);
    if (p->kernel->pass_by)
        p->kernel->pass_by();
    return done;
}
