/* unit.c: one piece of output, start to end: call tiles on packed factors, round, store. */

#include "product.h"

/* ---- bounds of the exact profile ---- */

/* One unit in the last place of float64 for every term, twice the worst case; a single term is not rounded at all. */
double refmoe_error_factor(const struct product *p, int64_t length)
{
    int64_t terms = length + (p->acc != NULL) + (p->bias != NULL);
    return terms <= 1 ? 0.0 : (double)(terms + 2) * 0x1p-52;
}

/* Of rows whose squares row_bound holds. */
static void bound_rows(const struct product *p, const struct unit *u, struct scratch *s)
{
    double factor = refmoe_error_factor(p, total_length(p, u));
    p->kernel->norms((int)u->rows, s->row_bound);
    for (int64_t row = 0; row < u->rows; row++)
        s->row_bound[row] *= factor, s->row_grid[row].known = 0;
}

static void bound_cols(const struct product *p, const struct unit *u, const struct panel *panel, double *norm)
{
    double sum[MAX_TILE_COLS] = {0}, squares[MAX_TILE_COLS];
    for (int q = 0; q < p->pairs; q++) {
        p->kernel->squares(u->pair[q].length, (const float *)panel->b[q], panel->ldb[q], squares);
        for (int j = 0; j < p->tile->cols; j++)
            sum[j] += squares[j];
    }
    for (int j = 0; j < p->tile->cols; j++)
        norm[j] = refmoe_norm_above(sum[j]);
}

/* ---- one tile ---- */

/* Accumulators and results of one tile. In the exact profile `extra` bounds what acc and bias add to the error. */
struct block {
    int64_t row, col; /* in the unit */
    int rows, cols, width;
    _Alignas(64) double value[MAX_TILE_ROWS * MAX_TILE_COLS];
    _Alignas(64) double extra[MAX_TILE_ROWS * MAX_TILE_COLS];
    _Alignas(64) double result[MAX_TILE_ROWS * MAX_TILE_COLS];
};

#define AT(array, type, index) (((const type *)(array))[index])

/* +0 comes first, so that acc and bias of -0 leave no -0 behind. */
static void start_exact(const struct product *p, const struct unit *u, struct block *t)
{
    double factor = refmoe_error_factor(p, total_length(p, u));
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->cols; j++) {
            double acc = u->acc ? AT(u->acc, float, (t->row + i) * u->out_row + t->col + j) : 0.0;
            double bias = u->bias ? AT(u->bias, float, t->col + j) : 0.0;
            t->value[i * t->width + j] = 0.0 + acc + bias;
            t->extra[i * t->width + j] = factor * (magnitude(acc) + magnitude(bias));
        }
}

#define DEFINE_START(name, type)                                                                                      \
    static void name(const struct unit *u, struct block *t)                                                           \
    {                                                                                                                 \
        type *value = (type *)t->value;                                                                               \
        for (int i = 0; i < t->rows; i++)                                                                             \
            for (int j = 0; j < t->cols; j++)                                                                         \
                value[i * t->width + j] = AT(u->acc, type, (t->row + i) * u->out_row + t->col + j);                   \
    }

DEFINE_START(start_chain, float)
DEFINE_START(start_unfused, double)

static void start(const struct product *p, const struct unit *u, struct block *t)
{
    memset(t->value, 0, (size_t)(t->rows * t->width * packed_item(p)));
    if (p->profile == REFMOE_EXACT && (u->acc || u->bias)) {
        memset(t->extra, 0, sizeof t->extra);
        start_exact(p, u, t);
    } else if (p->profile == REFMOE_CHAIN && u->acc) {
        start_chain(u, t);
    } else if (p->profile == REFMOE_UNFUSED && u->acc) {
        start_unfused(u, t);
    }
}

/* Decodes them, unless the output before was the same. */
const double *refmoe_decoded(const struct product *p, const struct unit *u, struct scratch *s, int64_t col)
{
    int64_t number = u->pair[0].expert * p->cols + u->pair[0].first + col + 1, done = 0;
    if (s->decoded_number == number)
        return s->decoded;
    for (int q = 0; q < p->pairs; q++) {
        const struct operand *o = &u->pair[q];
        int along = p->across == REFMOE_LANES_ALONG;
        refmoe_decode_codes(o->codes, o->expert, along ? o->first + col : 0, along ? 0 : o->first + col, o->length,
                            !along, s->decoded + done);
        done += o->length;
    }
    s->decoded_number = number;
    return s->decoded;
}

static struct terms terms_of(const struct product *p, const struct unit *u, struct scratch *s, int64_t row, int64_t col)
{
    struct terms terms = {.pairs = p->pairs};
    const double *decoded = u->pair[0].codes ? refmoe_decoded(p, u, s, col) : NULL;
    for (int q = 0; q < p->pairs; q++) {
        const struct operand *o = &u->pair[q];
        if (o->codes) {
            terms.pair[q] = (struct vector_pair){o->a + row * o->a_row * item_of(o->a_format), decoded, o->a_step, 1,
                                                 o->length, o->a_format, REFMOE_FLOAT64};
            decoded += o->length;
            continue;
        }
        terms.pair[q] = (struct vector_pair){o->a + row * o->a_row * item_of(o->a_format),
                                             o->b + col * o->b_col * item_of(o->b_format), o->a_step, o->b_step,
                                             o->length, o->a_format, o->b_format};
    }
    terms.bias = u->bias ? &AT(u->bias, float, col) : NULL;
    terms.acc = u->acc ? &AT(u->acc, float, row * u->out_row + col) : NULL;
    return terms;
}

float refmoe_resolve_output(const struct product *p, const struct unit *u, struct scratch *s, int64_t row, int64_t col,
                            double value, int slot)
{
    struct terms terms = terms_of(p, u, s, row, col);
    if (p->force == REFMOE_FORCE_NOTHING && !s->row_grid[row].known)
        s->row_grid[row] = refmoe_grid(p->kernel, p->pairs, terms.pair, 0);
    if (p->force == REFMOE_FORCE_NOTHING && !s->col_grid[slot].known)
        s->col_grid[slot] = refmoe_grid(p->kernel, p->pairs, terms.pair, 1);
    return refmoe_resolve(&terms, value, &s->row_grid[row], &s->col_grid[slot], p->format, p->force, &s->report);
}

/* `slot` is where the tile's columns stand among the norms and grids of the panels at hand. */
static void finish_exact(const struct product *p, const struct unit *u, struct scratch *s, struct block *t, int slot)
{
    float *out = (float *)t->result;
    uint32_t open[MAX_TILE_ROWS], real = (uint32_t)((UINT64_C(1) << t->cols) - 1);
    const double *extra = u->acc || u->bias ? t->extra : NULL;
    p->kernel->test(t->rows, t->value, s->row_bound + t->row, s->col_norm + slot, extra, p->format, out, open);
    for (int i = 0; i < t->rows; i++) {
        open[i] = p->force == REFMOE_FORCE_NOTHING ? open[i] & real : real;
        s->report.rounding_test += t->cols - __builtin_popcount(open[i]);
        for (; open[i]; open[i] &= open[i] - 1) {
            int j = __builtin_ctz(open[i]), at = i * t->width + j;
            out[at] = refmoe_resolve_output(p, u, s, t->row + i, t->col + j, t->value[at], slot + j);
        }
    }
}

static void finish_chain(const struct product *p, const struct unit *u, struct block *t)
{
    float bias[MAX_TILE_COLS] = {0};
    if (u->bias)
        memcpy(bias, &AT(u->bias, float, t->col), (size_t)t->cols * sizeof *bias);
    p->kernel->settle(t->rows, t->width, (const float *)t->value, NULL, u->bias ? bias : NULL, p->format,
                      (float *)t->result);
}

static void finish_unfused(const struct unit *u, struct block *t)
{
    const double nan = double_of_bits(UINT64_C(0x7FF8) << 48);
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->cols; j++) {
            int at = i * t->width + j;
            double sum = u->bias ? t->value[at] + AT(u->bias, double, t->col + j) : t->value[at];
            t->result[at] = sum == sum ? sum : nan;
        }
}

static void store(const struct product *p, const struct unit *u, const struct block *t)
{
    const char *from = (const char *)t->result;
    char *to = u->out + (t->row * u->out_row + t->col) * (int64_t)p->item;
    size_t bytes = (size_t)t->cols * p->item;
    for (int i = 0; i < t->rows; i++, from += (size_t)t->width * p->item, to += u->out_row * (int64_t)p->item) {
        if (bytes == 64)
            memcpy(to, from, 64);
        else
            memcpy(to, from, bytes);
    }
}

/* What whole_function takes: plain outputs of a full width, the sum of one pair. */
static int is_whole(const struct product *p, const struct unit *u, const struct panel *panel)
{
    return p->tile->whole && p->force == REFMOE_FORCE_NOTHING && p->pairs == 1
           && !u->acc && !u->bias && panel->cols == p->tile->cols;
}

/* Outputs beyond this many bytes would be pushed out of the last cache anyway, and what they push out is read again. */
enum { PAST_BYTES = 1 << 24 };

static int is_past_caches(const struct product *p)
{
    return p->experts * p->rows * p->cols > PAST_BYTES / (int64_t)sizeof(float);
}

/* Of a chain all `count` panels that are whole, of others the first; returns how many. */
static int compute_whole(const struct product *p, const struct unit *u, struct scratch *s, const struct panel *panel,
                         int count, const void *a, int slot, struct block *t)
{
    uint32_t open[MAX_TILE_ROWS] = {0};
    int panels = p->profile == REFMOE_CHAIN ? count - (panel[count - 1].cols < p->tile->cols) : 1;
    struct whole whole = {.a = a, .b = panel->b[0], .length = u->pair[0].length, .ldb = panel->ldb[0],
                          .panels = panels, .apart = panels > 1 ? panel[1].b[0] - panel[0].b[0] : 0,
                          .out = (float *)u->out + t->row * u->out_row + t->col, .out_row = u->out_row,
                          .row_bound = s->row_bound + t->row, .col_norm = s->col_norm + slot, .value = t->value,
                          .past = is_past_caches(p), .format = p->format};
    p->tile->whole(t->rows, &whole, open);
    if (p->profile != REFMOE_EXACT)
        return panels;
    s->report.rounding_test += t->rows * t->width;
    for (int i = 0, waited = 0; i < t->rows; i++)
        for (; open[i]; open[i] &= open[i] - 1, s->report.rounding_test--) {
            int j = __builtin_ctz(open[i]);
            if (whole.past && !waited++ && p->kernel->pass_by)
                p->kernel->pass_by(); /* what passed the caches is there before it is written again */
            whole.out[i * u->out_row + j] = refmoe_resolve_output(p, u, s, t->row + i, t->col + j,
                                                                  t->value[i * t->width + j], slot + j);
        }
    return panels;
}

/* The first of `count` panels, or some that are computed together; returns how many. */
static int compute_tiles(const struct product *p, const struct unit *u, struct scratch *s, const struct panel *panel,
                         int count, int64_t row, int slot, struct block *t)
{
    const char *a = (const char *)s->packed_rows + row * total_length(p, u) * packed_item(p);
    t->row = row, t->col = panel->first;
    t->rows = (int)lower(p->tile->rows, u->rows - row), t->cols = panel->cols, t->width = p->tile->cols;
    if (is_whole(p, u, panel))
        return compute_whole(p, u, s, panel, count, a, slot, t);
    start(p, u, t);
    for (int q = 0; q < p->pairs; q++) {
        p->tile->multiply(t->rows, u->pair[q].length, a, panel->b[q], panel->ldb[q], t->value);
        a += u->pair[q].length * p->tile->rows * packed_item(p);
    }
    if (p->profile == REFMOE_EXACT)
        finish_exact(p, u, s, t, slot);
    else if (p->profile == REFMOE_CHAIN)
        finish_chain(p, u, t);
    else
        finish_unfused(u, t);
    store(p, u, t);
    return 1;
}

/* ---- the unit ---- */

/* A thread that stays with these rows finds them packed. Those of an expert without any begin where the next one's
   do. */
static void hold_rows(const struct product *p, const struct unit *u, struct scratch *s)
{
    int empty = total_length(p, u) == 0;
    if (!empty && s->held == u->pair[0].a && s->held_rows == u->rows)
        return;
    memset(s->row_bound, 0, (size_t)u->rows * sizeof *s->row_bound);
    refmoe_pack_rows(p, u, s->packed_rows, s->row_bound);
    if (p->profile == REFMOE_EXACT)
        bound_rows(p, u, s);
    s->held = empty ? NULL : u->pair[0].a, s->held_rows = u->rows;
}

/* A few panels at a time meet all rows: a long sum's panels, or a short sum's row of tiles, stay in cache. */
void refmoe_compute_unit(const struct product *p, const struct unit *u, struct scratch *s)
{
    int width = p->tile->cols;
    struct panel panel[MAX_UNIT_COLS];
    struct block tile;
    hold_rows(p, u, s);
    for (int64_t first = 0, count; first < u->cols; first += count * width) {
        count = refmoe_make_panels(p, u, first, panel, s->packed_cols);
        for (int c = 0; c < count && p->profile == REFMOE_EXACT; c++)
            bound_cols(p, u, &panel[c], s->col_norm + c * width);
        for (int j = 0; j < count * width; j++)
            s->col_grid[j].known = 0;
        for (int64_t row = 0; row < u->rows; row += p->tile->rows)
            for (int c = 0; c < count;)
                c += compute_tiles(p, u, s, &panel[c], count - c, row, c * width, &tile);
    }
    if (p->kernel->pass_by)
        p->kernel->pass_by();
}
