/* sums.c: refmoe_sums.h: check, gather what a row of output sums, share out the rows. */

#include "share_out.h"
#include "sums.h"

enum { ROWS_AT_ONCE = 8 };

/* ---- one element ---- */

static float value_at(const struct factor *f, int64_t j) { return f->at[j * f->col]; }

void refmoe_sum_alone(const struct sum_row *row, int64_t j, int format)
{
    float *a = row->room, *b = row->room + row->count;
    for (int64_t q = 0; q < row->count; q++) {
        a[q] = value_at(&row->part[q].a, j);
        b[q] = row->part[q].b.at ? value_at(&row->part[q].b, j) : 1.0f;
    }
    struct terms terms = {.pairs = 1, .pair[0] = {.a = a, .b = b, .a_step = 1, .b_step = 1, .length = row->count}};
    int force = row->force == REFMOE_FORCE_EXACT ? REFMOE_FORCE_EXACT : REFMOE_FORCE_COMPENSATED;
    refmoe_report report;
    row->out[j] = refmoe_resolve(&terms, 0.0, NULL, NULL, format, force, &report);
}

/* ---- one row ---- */

/* Terms of refmoe_weighted_sum_f32: by slot, as many of each token as there are terms. */
struct slots {
    const float *weights, *rows;
    const int64_t *slot_row;
};

struct task {
    const struct sums *sums;
    int format, force;
    int64_t n, m, terms;
    const refmoe_term *term;
    struct slots slots; /* without `term` */
    float *out;
    char *taken; /* or NULL: see sum_rows */
    size_t bytes;
};

/* Row i of a view; NULL for a row of zeros. */
static const float *row_of(const refmoe_view *view, int64_t i)
{
    int64_t r = view->index ? view->index[i * view->step] : i;
    return r < 0 ? NULL : view->array + r * view->row;
}

static int64_t gather(const struct task *t, int64_t i, struct part *part)
{
    int64_t count = 0;
    for (int64_t q = 0; q < t->terms; q++) {
        const refmoe_term *term = &t->term[q];
        const float *a = row_of(&term->a, i), *b = term->b.array ? row_of(&term->b, i) : NULL;
        if (!a || (term->b.array && !b))
            continue;
        part[count++] = (struct part){{a, term->a.col}, {b, term->b.col}};
    }
    return count;
}

static int64_t gather_slots(const struct task *t, int64_t i, struct part *part)
{
    int64_t count = 0;
    for (int64_t slot = i * t->terms; slot < (i + 1) * t->terms; slot++) {
        int64_t r = t->slots.slot_row[slot];
        if (r >= 0)
            part[count++] = (struct part){{t->slots.weights + slot, 0}, {t->slots.rows + r * t->m, 1}};
    }
    return count;
}

/* What one thread gathers, for as many terms as a row has: its parts, and two numbers of each. */
struct room {
    struct part *part;
    float *numbers;
};

static void sum_one_row(const struct task *t, int64_t i, struct room room)
{
    struct sum_row row = {.m = t->m, .part = room.part, .room = room.numbers, .out = t->out + i * t->m};
    row.count = t->term ? gather(t, i, room.part) : gather_slots(t, i, room.part);
    row.force = t->force;
    if (!t->force)
        t->sums->sum(&row, t->format);
    for (int64_t j = 0; t->force && j < t->m; j++)
        refmoe_sum_alone(&row, j, t->format);
}

/* ---- sharing out the rows ---- */

/* `taken`: each thread's memory for what it gathers, `bytes` of it. */
static void sum_rows(const void *task, int64_t begin, int64_t end, int thread)
{
    const struct task *t = task;
    struct part part[FEW_TERMS]; /* few terms, as a token's slots are, need the stack alone */
    float numbers[2 * FEW_TERMS];
    struct room room = {part, numbers};
    if (t->taken) {
        room.part = (struct part *)(t->taken + (size_t)thread * t->bytes);
        room.numbers = (float *)(room.part + t->terms);
    }
    for (int64_t i = begin; i < end; i++)
        sum_one_row(t, i, room);
}

/* Of all threads, from a line of the cache on; -1: no memory is as large. */
static int64_t room_bytes(const struct task *t, int threads)
{
    int64_t bytes;
    if (__builtin_mul_overflow(t->bytes, (int64_t)threads, &bytes) || bytes > PTRDIFF_MAX / 2)
        return -1;
    return bytes + CACHE_LINE;
}

/* Many terms are gathered in the caller's workspace, or in memory that is taken for the call. */
static int run(struct task *t, const refmoe_how *how)
{
    int threads = threads_of(t->n, ROWS_AT_ONCE, how->threads), asked = how->workspace && !how->workspace->at;
    int64_t size = (int64_t)(sizeof(struct part) + 2 * sizeof(float));
    if (t->terms <= FEW_TERMS && !asked) {
        share_out(sum_rows, t, t->n, ROWS_AT_ONCE, threads);
        return REFMOE_OK;
    }
    if (t->terms > PTRDIFF_MAX / 2 / size)
        return REFMOE_NO_MEMORY;
    t->bytes = t->terms > FEW_TERMS ? whole_tiles(t->terms * size, CACHE_LINE) : 0;
    void *room;
    int status = refmoe_enter_room(how->workspace, room_bytes(t, threads), &room);
    if (!room)
        return status;
    t->taken = (char *)room + (-(uintptr_t)room & (CACHE_LINE - 1));
    share_out(sum_rows, t, t->n, ROWS_AT_ONCE, threads);
    refmoe_leave_room(how->workspace, room);
    return REFMOE_OK;
}

/* ---- checks ---- */

static int check_view(const refmoe_view *view, int64_t n, int64_t m)
{
    if (view->col != 0 && view->col != 1)
        return REFMOE_BAD_SIZE;
    if (n > 0 && m > 0 && !view->array && !(view->index && view->rows == 0))
        return REFMOE_BAD_POINTER;
    for (int64_t i = 0; view->index && i < n; i++)
        if (view->index[i * view->step] < -1 || view->index[i * view->step] >= view->rows)
            return REFMOE_BAD_OFFSETS;
    return REFMOE_OK;
}

static int check_how(const refmoe_how *how)
{
    if (!refmoe_kernel(how->kernel))
        return REFMOE_BAD_KERNEL;
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    if (how->format < REFMOE_FLOAT32 || how->format > REFMOE_FP16)
        return REFMOE_BAD_FORMAT;
    return how->force < 0 || how->force > REFMOE_FORCE_EXACT ? REFMOE_BAD_FORCE : REFMOE_OK;
}

static int check(const refmoe_how *how, int64_t n, int64_t m, int64_t terms, const refmoe_term *term, const float *out)
{
    int status = check_how(how);
    if (status)
        return status;
    if (!is_size(n, m) || terms < 1 || !is_size(terms, 1))
        return REFMOE_BAD_SIZE;
    if (!term || (!out && n * m > 0))
        return REFMOE_BAD_POINTER;
    for (int64_t q = 0; q < terms && !status; q++) {
        status = check_view(&term[q].a, n, m);
        if (!status && term[q].b.array)
            status = check_view(&term[q].b, n, m);
    }
    return status;
}

int refmoe_check_weighted_sum(const refmoe_how *how, int64_t tokens, int64_t cols, int64_t top_k, int64_t rows,
                              const float *y_rows, const float *weights, const int64_t *slot_row, const float *out)
{
    int status = check_how(how);
    if (status)
        return status;
    if (top_k < 1 || !is_size(tokens, cols) || !is_size(tokens, top_k) || !is_size(rows, cols))
        return REFMOE_BAD_SIZE;
    if (tokens * cols > 0 && (!out || !weights || !slot_row || (rows > 0 && !y_rows)))
        return REFMOE_BAD_POINTER;
    for (int64_t slot = 0; cols > 0 && slot < tokens * top_k; slot++)
        if (slot_row[slot] < -1 || slot_row[slot] >= rows)
            return REFMOE_BAD_OFFSETS;
    return REFMOE_OK;
}

/* ---- the public functions ---- */

int refmoe_sum_f32(const refmoe_how *how, int64_t n, int64_t m, int64_t terms, const refmoe_term *term, float *out)
{
    int status = check(how, n, m, terms, term, out);
    if (status)
        return status;
    struct task task = {.sums = refmoe_kernel(how->kernel)->sums, .format = how->format, .force = how->force,
                        .n = n, .m = m, .terms = terms, .term = term, .out = out};
    return run(&task, how);
}

int refmoe_weighted_sum_f32(const refmoe_how *how, int64_t tokens, int64_t cols, int64_t top_k, int64_t rows,
                            const float *y_rows, const float *weights, const int64_t *slot_row, float *out)
{
    int status = refmoe_check_weighted_sum(how, tokens, cols, top_k, rows, y_rows, weights, slot_row, out);
    if (status)
        return status;
    struct task task = {.sums = refmoe_kernel(how->kernel)->sums, .format = how->format, .force = how->force,
                        .n = tokens, .m = cols, .terms = top_k, .slots = {weights, y_rows, slot_row}, .out = out};
    return run(&task, how);
}
