/* few.c: the forward product of an expert that few rows chose. */

#include "product.h"

/* Numbers of a block of x, in the exact profile. */
static int block_of(const struct few *few, const struct operand *o)
{
    return !o->codes && o->b_format == REFMOE_BF16 ? 2 * few->cols : few->cols;
}

/* Codes whose scales change between vectors only. */
static int64_t rows_of_codes(const struct codes *c)
{
    return !c->given.scales || c->given.block_cols % MAX_FEW_COLS == 0 ? MAX_FEW_ROWS : 0;
}

/* Products this file may compute, and how many rows an expert of them may have. */
int64_t refmoe_few_rows(const struct product *p)
{
    if (p->across != REFMOE_LANES_ALONG || !p->kernel->few)
        return 0;
    return p->pair[0].codes ? rows_of_codes(p->pair[0].codes) : p->kernel->few->rows[p->profile];
}

int64_t refmoe_few_room(const struct product *p, int64_t length)
{
    return p->kernel->few ? MAX_FEW_ROWS * whole_tiles(length, 2 * p->kernel->few->cols) * (int64_t)sizeof(double) : 0;
}

/* ---- rows of x ---- */

/* As floats, or, `wide`, as doubles. */
static void turn_chain(const struct unit *u, int wide, void *to)
{
    const struct operand *o = &u->pair[0];
    for (int64_t i = 0; i < u->rows; i++)
        for (int64_t k = 0; k < o->length; k++) {
            float value = number_at(o->a, o->a_format, i * o->a_row + k);
            if (wide)
                ((double *)to)[k * u->rows + i] = value;
            else
                ((float *)to)[k * u->rows + i] = value;
        }
}

/* The power of two that numbers of a format are given with. */
static int exponent_of(const struct few *few, const struct operand *o)
{
    if (o->codes)
        return few->kind_of(o->codes->small) == FEW_MINI ? few->mini_exponent : 0;
    return o->b_format == REFMOE_BF16 ? few->bf16_exponent : 0;
}

/* Returns an upper bound of the sum of magnitudes of row i. */
static double turn_exact(const struct few *few, const struct unit *u, int64_t i, double *to)
{
    const struct operand *o = &u->pair[0];
    double sum = 0.0, scale = power_of_two(exponent_of(few, o));
    int64_t block = block_of(few, o), first = i * o->a_row;
    to += i * block;
    for (int64_t k = 0; k < o->length; k += block, to += u->rows * block) {
        int count = (int)lower(block, o->length - k);
        double part = 0.0;
        memset(to, 0, (size_t)block * sizeof *to);
        for (int j = 0; j < count; j++) {
            double value = number_at(o->a, o->a_format, first + k + j);
            to[j] = value * scale;
            part += magnitude(value);
        }
        sum += part;
    }
    return sum * (1 + 0x1p-20);
}

/* A lane of doubles takes every half vector or every second one, so a term meets at most twice as many additions as
   there are whole vectors. Then the last block, two sums, at most eight lanes, acc and bias. Codes do so within a block
   of one scale; then a sum meets each block once, the last of which may be a piece. */
static double error_factor(const struct product *p, const struct unit *u)
{
    const struct operand *o = &u->pair[0];
    int64_t block = o->length, cols = p->kernel->few->cols;
    if (o->codes && o->codes->given.scales)
        block = lower(block, o->codes->given.block_cols);
    int64_t scales = !o->codes || block == 0 ? 0 : o->length / block + 1;
    return HALF_UNIT * (double)(2 * (block / cols) + scales + 8 + 2 * (o->codes != NULL));
}

/* Rows as words of two k, behind where floats would be. NULL: they may not be, or are unsafe. */
static const uint32_t *turn_words(const struct product *p, const struct unit *u, struct scratch *s)
{
    const struct operand *o = &u->pair[0];
    uint32_t *to = (uint32_t *)(s->right + refmoe_few_room(p, o->length) / 2);
    struct pair_source from = {o->a, o->a_format, (int)u->rows, (int)u->rows, o->length, o->a_row};
    if (!p->paired || o->codes || !p->kernel->few->paired[u->rows])
        return NULL;
    return p->kernel->pairs->along(&from, to) ? to : NULL;
}

/* A thread that stays with an expert finds its rows turned already. (lanes.c turns them otherwise, but not these: the
   number of rows tells whose they are.) */
static void hold_rows(const struct product *p, const struct unit *u, struct scratch *s)
{
    double factor = error_factor(p, u);
    for (int64_t i = 0; i < u->rows; i++)
        s->row_grid[i].known = 0;
    if (s->held == u->pair[0].a && s->held_rows == u->rows && s->held_wide == p->wide)
        return;
    s->held_words = turn_words(p, u, s);
    if (p->profile == REFMOE_CHAIN && !s->held_words)
        turn_chain(u, p->wide, s->right);
    for (int64_t i = 0; i < u->rows && p->profile == REFMOE_EXACT; i++)
        s->row_bound[i] = factor * turn_exact(p->kernel->few, u, i, (double *)s->right);
    s->held = u->pair[0].a, s->held_rows = u->rows, s->held_wide = p->wide;
}

/* ---- one block of outputs ---- */

struct part {
    int rows, cols, pitch;
    int64_t col; /* first column in the unit */
    _Alignas(64) double value[MAX_FEW_ROWS * MAX_FEW_COLS], extra[MAX_FEW_ROWS * MAX_FEW_COLS];
    _Alignas(64) double largest[MAX_GROUPED_COLS];
    _Alignas(64) float result[MAX_FEW_ROWS * MAX_FEW_COLS];
};

static float acc_at(const struct unit *u, const struct part *t, int i, int j)
{
    return ((const float *)u->acc)[i * u->out_row + t->col + j];
}

static void start_chain(const struct unit *u, struct part *t)
{
    float *value = (float *)t->value;
    memset(value, 0, sizeof t->value);
    for (int i = 0; i < t->rows && u->acc; i++)
        for (int j = 0; j < t->cols; j++)
            value[i * t->pitch + j] = acc_at(u, t, i, j);
}

static void finish_chain(const struct product *p, const struct unit *u, struct part *t)
{
    float bias[MAX_GROUPED_COLS] = {0};
    if (u->bias)
        memcpy(bias, (const float *)u->bias + t->col, (size_t)t->cols * sizeof *bias);
    p->kernel->settle(t->rows, t->pitch, (const float *)t->value, NULL, u->bias ? bias : NULL, p->format, t->result);
}

/* acc and bias are two more terms. A sum that started from +0 is never -0, nor is +0 plus a zero of any sign. */
static void add_terms(const struct product *p, const struct unit *u, struct part *t)
{
    double factor = error_factor(p, u);
    for (int i = 0; i < t->rows; i++)
        for (int j = 0; j < t->cols; j++) {
            double acc = u->acc ? acc_at(u, t, i, j) : 0.0;
            double bias = u->bias ? ((const float *)u->bias)[t->col + j] : 0.0;
            t->value[i * t->pitch + j] = t->value[i * t->pitch + j] + acc + bias;
            t->extra[i * t->pitch + j] = factor * (magnitude(acc) + magnitude(bias));
        }
}

/* Infinite and NaN weights decide the sums of their output: any way to add them up will do. */
static void repair(const struct product *p, const struct unit *u, struct scratch *s, struct part *t, int j)
{
    const struct operand *o = &u->pair[0];
    const double *decoded = o->codes ? refmoe_decoded(p, u, s, t->col + j) : NULL;
    for (int i = 0; i < t->rows; i++) {
        double sum = 0.0;
        for (int64_t k = 0; k < o->length; k++)
            sum += (double)number_at(o->a, o->a_format, i * o->a_row + k)
                   * (decoded ? decoded[k] : number_at(o->b, o->b_format, (t->col + j) * o->b_col + k));
        t->value[i * t->pitch + j] = sum;
    }
}

/* The chains of an output with infinite or NaN codes, one step after the other. */
static void repair_chain(const struct product *p, const struct unit *u, struct scratch *s, struct part *t, int j)
{
    const struct operand *o = &u->pair[0];
    const double *decoded = refmoe_decoded(p, u, s, t->col + j);
    for (int i = 0; i < t->rows; i++) {
        float sum = u->acc ? acc_at(u, t, i, j) : 0.0f;
        for (int64_t k = 0; k < o->length; k++)
            sum = refmoe_fused_wide(number_at(o->a, o->a_format, i * o->a_row + k), decoded[k], sum);
        ((float *)t->value)[i * t->pitch + j] = sum;
    }
}

static void finish_exact(const struct product *p, const struct unit *u, struct scratch *s, struct part *t)
{
    uint32_t open[MAX_FEW_ROWS], real = (UINT32_C(1) << t->cols) - 1;
    int more = u->acc || u->bias;
    for (int j = 0; j < t->cols; j++)
        if (!is_finite(t->largest[j]))
            repair(p, u, s, t, j);
    if (more)
        add_terms(p, u, t);
    p->kernel->test(t->rows, t->value, s->row_bound, t->largest, more ? t->extra : NULL, p->format, t->result, open);
    for (int j = 0; j < t->cols; j++)
        s->col_grid[j].known = 0;
    for (int i = 0; i < t->rows; i++) {
        open[i] = p->force == REFMOE_FORCE_NOTHING ? open[i] & real : real;
        s->report.rounding_test += t->cols - __builtin_popcount(open[i]);
        for (; open[i]; open[i] &= open[i] - 1) {
            int j = __builtin_ctz(open[i]), at = i * t->pitch + j;
            t->result[at] = refmoe_resolve_output(p, u, s, i, t->col + j, t->value[at], j);
        }
    }
}

static void store(const struct unit *u, const struct part *t)
{
    for (int i = 0; i < t->rows; i++)
        memcpy((float *)u->out + i * u->out_row + t->col, t->result + i * t->pitch, (size_t)t->cols * sizeof(float));
}

static void compute_codes(const struct product *p, const struct unit *u, struct scratch *s, struct part *t)
{
    const struct operand *o = &u->pair[0];
    const struct few *few = p->kernel->few;
    struct few_block block = {.cols = t->cols, .length = o->length, .x = s->right, .value = t->value,
                              .largest = t->largest, .codes = o->codes, .expert = o->expert, .row = o->first + t->col};
    int profile = p->wide ? REFMOE_WIDE : p->profile;
    few_function *compute = few->codes[profile][few->kind_of(o->codes->small)][t->rows];
    if (p->profile == REFMOE_EXACT) {
        compute(&block);
        finish_exact(p, u, s, t);
    } else {
        start_chain(u, t);
        compute(&block);
        for (int j = 0; j < t->cols; j++)
            if (t->largest[j] != 0)
                repair_chain(p, u, s, t, j);
        finish_chain(p, u, t);
    }
    store(u, t);
}

/* The next block's; after the last one what is read then, as far as anybody knows. */
static const char *next_weights(const struct unit *u, const struct scratch *s, const struct part *t, int64_t step)
{
    int is_last = t->col + t->pitch >= u->cols;
    return is_last && s->next ? s->next : u->pair[0].b + (t->col + t->pitch) * step;
}

/* Two k a step; from the first unsafe weight or unfilled block on, these rows meet one k after the other. */
static void compute_chain(const struct product *p, const struct unit *u, struct scratch *s, struct part *t,
                          struct few_block *block)
{
    const struct few *few = p->kernel->few;
    block->x = s->held_words;
    if (s->held_words && t->cols == t->pitch) {
        few->paired[t->rows](block);
        if (t->largest[0] == 0) {
            s->report.paired += t->rows * t->cols;
            return;
        }
    }
    if (s->held_words)
        turn_chain(u, p->wide, s->right);
    s->held_words = NULL, block->x = s->right;
    start_chain(u, t);
    few->run[REFMOE_CHAIN][u->pair[0].b_format][t->rows](block);
}

static void compute_part(const struct product *p, const struct unit *u, struct scratch *s, struct part *t)
{
    const struct operand *o = &u->pair[0];
    if (o->codes) {
        compute_codes(p, u, s, t);
        return;
    }
    int64_t step = o->b_col * item_of(o->b_format);
    struct few_block block = {.cols = t->cols, .length = o->length, .step = step, .w = o->b + t->col * step,
                              .ahead = next_weights(u, s, t, step), .x = s->right, .value = t->value,
                              .largest = t->largest};
    if (p->profile == REFMOE_CHAIN) {
        compute_chain(p, u, s, t, &block);
        finish_chain(p, u, t);
    } else {
        p->kernel->few->run[REFMOE_EXACT][o->b_format][t->rows](&block);
        finish_exact(p, u, s, t);
    }
    store(u, t);
}

void refmoe_compute_few(const struct product *p, const struct unit *u, struct scratch *s)
{
    struct part t = {.rows = (int)u->rows, .pitch = p->kernel->few->cols};
    if (p->profile == REFMOE_CHAIN && u->pair[0].codes)
        t.pitch *= few_groups(t.rows);
    hold_rows(p, u, s);
    for (t.col = 0; t.col < u->cols; t.col += t.pitch) {
        t.cols = (int)lower(t.pitch, u->cols - t.col);
        compute_part(p, u, s, &t);
    }
}
