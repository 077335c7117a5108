/* feed_forward.c: refmoe_experts.h: the stages of experts with few rows, one after the other in the same threads.

   Two stages of units: some columns of gate and of up, with the elements of hidden that need no others; then, when all
   of those are done, some columns of y. A thread begins with the units of neighbouring experts and tells few.c where it
   will read next, so that the weights come in one stream from the first to the last. The sum of y by slot follows: it
   is short beside them. */

#define _GNU_SOURCE /* of placement.h */

#include "formulas.h"
#include "placement.h"
#include "product.h"
#include "refmoe_experts.h"
#include "sums.h"

enum { ROWS_OF_UP = 0, ROWS_OF_Y = 1, UNIT_COLS = MAX_GROUPED_COLS };

/* Products of a stage, all of the same sizes. */
struct stage {
    const struct product *p[2];
    int products;
    struct cut cut;
    int64_t units;
};

struct call {
    struct product gate, up, down;
    struct stage stage[2];
    struct formula_call act, scale;
    formula_function *gated, *scaled; /* scaled NULL: no weights of rows */
    struct scratch *scratch;
    refmoe_open *open; /* of hidden, then of weighted */
    atomic_llong *done; /* units of the first stage */
    int threads;
};

/* ---- where a unit lies ---- */

static int64_t units_of(const struct stage *s, int64_t e)
{
    const int64_t *offsets = s->p[0]->offsets;
    return offsets[e + 1] > offsets[e] ? (s->p[0]->cols + UNIT_COLS - 1) / UNIT_COLS : 0;
}

/* The expert of a unit, from where its units begin on. */
struct place {
    int64_t expert, begin;
};

static void go_to(const struct stage *s, int64_t number, struct place *at)
{
    while (number >= at->begin + units_of(s, at->expert))
        at->begin += units_of(s, at->expert++);
}

/* The weights of a unit's first column; NULL beyond the last unit, and of codes, which few.c does not fetch. */
static const char *weights_at(const struct stage *s, int product, int64_t number, struct place at)
{
    const struct operand *o = &s->p[product]->pair[0];
    if (number >= s->units || o->codes)
        return NULL;
    go_to(s, number, &at);
    int64_t column = at.expert * s->p[product]->cols + (number - at.begin) * UNIT_COLS;
    return o->b + column * o->b_col * item_of(o->b_format);
}

/* ---- one unit ---- */

static void activate(const struct call *c, const struct unit *u, int64_t first_row, int64_t first_col)
{
    for (int64_t i = first_row; i < first_row + u->rows; i++) {
        int64_t begin = i * u->out_row + first_col;
        c->gated(&c->act, begin, begin + u->cols);
        if (c->scaled)
            c->scaled(&c->scale, begin, begin + u->cols);
    }
}

/* `after`: what the thread will read when this unit is done. */
static void compute(const struct call *c, int number, int64_t expert, int64_t index, const char *after,
                    struct scratch *s)
{
    const struct stage *stage = &c->stage[number];
    struct place here = {expert, 0};
    struct unit unit;
    for (int i = 0; i < stage->products; i++) {
        unit = refmoe_make_unit(stage->p[i], &stage->cut, expert, index);
        s->decoded_number = 0; /* of another product */
        s->next = i + 1 < stage->products ? weights_at(stage, i + 1, index, here) : after;
        refmoe_compute_few(stage->p[i], &unit, s);
    }
    if (number == ROWS_OF_UP) {
        activate(c, &unit, stage->p[0]->offsets[expert], index * UNIT_COLS);
        atomic_fetch_add(c->done, 1);
    }
}

/* ---- one thread ---- */

/* What follows unit `number` if the share's owner goes on: the next one, or the first of its next stage. */
static const char *following(const struct call *c, int stage, const struct share *share, int64_t number,
                             struct place at, int thread)
{
    if (number + 1 < share->end)
        return weights_at(&c->stage[stage], 0, number + 1, at);
    struct place start = {0, 0};
    const struct share *down = &c->scratch[thread].share[ROWS_OF_Y];
    return stage == ROWS_OF_Y ? NULL : weights_at(&c->stage[ROWS_OF_Y], 0, atomic_load(&down->next), start);
}

static void take_units(const struct call *c, int stage, int owner, int64_t most, int thread)
{
    struct place at = {0, 0};
    struct share *share = &c->scratch[owner].share[stage];
    int64_t number;
    while (most-- > 0 && (number = atomic_fetch_add(&share->next, 1)) < share->end) {
        go_to(&c->stage[stage], number, &at);
        const char *after = following(c, stage, share, number, at, thread);
        compute(c, stage, at.expert, number - at.begin, after, &c->scratch[thread]);
    }
}

static void work(const void *call, int thread, int64_t most)
{
    const struct call *c = call;
    if (most < INT64_MAX) {
        take_units(c, ROWS_OF_UP, thread, most, thread);
        return;
    }
    for (int i = 0; i < c->threads; i++)
        take_units(c, ROWS_OF_UP, (thread + i) % c->threads, most, thread);
    for (int turn = 0; atomic_load(c->done) < c->stage[ROWS_OF_UP].units; turn++)
        wait_a_turn(turn);
    if (c->open[0].count || c->open[1].count)
        return;
    for (int i = 0; i < c->threads; i++)
        take_units(c, ROWS_OF_Y, (thread + i) % c->threads, most, thread);
}

/* ---- the call ---- */

static struct stage make_stage(const struct product *first, const struct product *second)
{
    struct stage stage = {{first, second}, second ? 2 : 1, {MAX_FEW_ROWS, UNIT_COLS, first->pair[0].length}, 0};
    for (int64_t e = 0; e < first->experts; e++)
        stage.units += units_of(&stage, e);
    return stage;
}

static int has_many_rows(const struct product *p)
{
    int64_t most = refmoe_few_rows(p);
    for (int64_t e = 0; e < p->experts; e++)
        if (p->offsets[e + 1] - p->offsets[e] > most)
            return 1;
    return most == 0;
}

static int run(struct call *c, refmoe_workspace *workspace, refmoe_report *report)
{
    const struct product *p = c->stage[c->up.pair[0].length < c->down.pair[0].length].p[0];
    struct cut *cut = &c->stage[p == &c->down].cut;
    int threads = refmoe_team_size(p->threads, c->stage[ROWS_OF_UP].units);
    int64_t bytes = refmoe_workspace_bytes(p, cut, threads);
    atomic_llong done;
    void *room;
    int status = refmoe_enter_room(workspace, bytes, &room);
    if (!room)
        return status;
    c->scratch = refmoe_lay_out(p, cut, threads, room), c->threads = threads, c->done = &done;
    atomic_init(&done, 0);
    refmoe_share_out(c->scratch, ROWS_OF_UP, c->stage[ROWS_OF_UP].units, threads);
    refmoe_share_out(c->scratch, ROWS_OF_Y, c->stage[ROWS_OF_Y].units, threads);
    refmoe_run_team(work, c, threads);
    if (report)
        *report = refmoe_add_reports(c->scratch, threads, bytes);
    refmoe_leave_room(workspace, room);
    return REFMOE_OK;
}

/* ---- the public function ---- */

/* hidden and weighted are float32, whatever x is. */
static int describe_products(struct call *c, const refmoe_how *how, int64_t e, int64_t n, int64_t d, int64_t f,
                             const int64_t *offsets, const void *x, const refmoe_linear *gate, const refmoe_linear *up,
                             const float *read, const refmoe_linear *down)
{
    refmoe_how then = *how;
    then.left_format = REFMOE_FLOAT32;
    int status = refmoe_describe_forward(how, sizeof(float), e, n, f, d, offsets, x, up->w, up->bias, NULL, up->out,
                                         &c->up);
    if (!status && gate->w)
        status = refmoe_describe_forward(how, sizeof(float), e, n, f, d, offsets, x, gate->w, gate->bias, NULL,
                                         gate->out, &c->gate);
    if (!status)
        status = refmoe_describe_forward(&then, sizeof(float), e, n, d, f, offsets, read, down->w, down->bias, NULL,
                                         down->out, &c->down);
    return status;
}

static int describe_formulas(struct call *c, const refmoe_how *how, const refmoe_activation *act, int64_t f,
                             const float *gate, const float *up, const float *row_weights, float *hidden,
                             float *weighted)
{
    c->gated = refmoe_gated_function(how, act, &c->act);
    if (!c->gated)
        return REFMOE_BAD_PROFILE;
    c->act.in[0] = gate ? gate : up, c->act.in[1] = gate ? up : NULL;
    c->act.out[0] = hidden, c->act.open[0] = &c->open[0];
    if (!row_weights)
        return REFMOE_OK;
    c->scaled = refmoe_scaled_function(how, &c->scale);
    c->scale.length = f, c->scale.in[0] = row_weights, c->scale.in[1] = hidden;
    c->scale.out[0] = weighted, c->scale.open[0] = &c->open[1];
    return REFMOE_OK;
}

/* Few terms, so that the sum needs no memory: the workspace is the products'. */
static int check_slots(const refmoe_how *how, int64_t n, int64_t d, const float *y, const refmoe_slots *s)
{
    int status = refmoe_check_weighted_sum(how, s->tokens, d, s->top_k, n, y, s->weights, s->slot_row, s->out);
    return status == REFMOE_OK && s->top_k > FEW_TERMS ? REFMOE_BAD_SIZE : status;
}

static int sum_slots(const refmoe_how *how, int64_t n, int64_t d, const float *y, const refmoe_slots *s)
{
    refmoe_how then = *how;
    then.workspace = NULL;
    return refmoe_weighted_sum_f32(&then, s->tokens, d, s->top_k, n, y, s->weights, s->slot_row, s->out);
}

int refmoe_feed_forward_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t d, int64_t f, const int64_t *offsets,
                            const void *x, const refmoe_activation *act, const refmoe_linear *gate,
                            const refmoe_linear *up, const float *row_weights, float *hidden, float *weighted,
                            const refmoe_linear *down, const refmoe_slots *slots, int64_t *left_open,
                            refmoe_report *report)
{
    refmoe_open open[2] = {{0}};
    struct call c = {.open = open};
    if (!act || !gate || !up || !down || !left_open || !row_weights != !weighted)
        return REFMOE_BAD_POINTER;
    int status = describe_products(&c, how, e, n, d, f, offsets, x, gate, up, row_weights ? weighted : hidden, down);
    if (!status && n * f > 0 && !hidden)
        status = REFMOE_BAD_POINTER;
    if (!status)
        status = describe_formulas(&c, how, act, f, gate->w ? gate->out : NULL, up->out, row_weights, hidden, weighted);
    if (!status && (has_many_rows(&c.up) || has_many_rows(&c.down) || (gate->w && has_many_rows(&c.gate))))
        status = REFMOE_MANY_ROWS;
    if (!status && slots)
        status = check_slots(how, n, d, down->out, slots);
    if (status)
        return status;
    c.stage[ROWS_OF_UP] = gate->w ? make_stage(&c.gate, &c.up) : make_stage(&c.up, NULL);
    c.stage[ROWS_OF_Y] = make_stage(&c.down, NULL);
    status = run(&c, how->workspace, report);
    *left_open = open[0].count + open[1].count;
    int is_measured = how->workspace && !how->workspace->at; /* nothing was computed */
    return status || *left_open || !slots || is_measured ? status : sum_slots(how, n, d, down->out, slots);
}
