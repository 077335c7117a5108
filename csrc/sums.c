/* sums.c: refmoe_sums.h: check, gather what a row of output sums, share out the rows. */

#define _GNU_SOURCE /* of placement.h */

#include <stdatomic.h>
#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "environment.h"
#include "placement.h"
#include "sums.h"

enum { ROWS_AT_ONCE = 8, FEW_TERMS = 128 };

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

struct task {
    const struct sums *sums;
    int format, force;
    int64_t n, m, terms;
    const refmoe_term *term;
    float *out;
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

/* What one thread gathers, for as many terms as a row has: its parts, and two numbers of each. */
struct room {
    struct part *part;
    float *numbers;
};

static void sum_one_row(const struct task *t, int64_t i, struct room room)
{
    struct sum_row row = {.m = t->m, .part = room.part, .room = room.numbers, .out = t->out + i * t->m};
    row.count = gather(t, i, room.part);
    row.force = t->force;
    if (!t->force)
        t->sums->sum(&row, t->format);
    for (int64_t j = 0; t->force && j < t->m; j++)
        refmoe_sum_alone(&row, j, t->format);
}

/* ---- sharing out the rows ---- */

/* Threads take the next rows until none is left. */
static void sum_rows(const struct task *t, atomic_llong *next, struct room room)
{
    environment found = enter_environment();
    for (;;) {
        int64_t from = atomic_fetch_add(next, ROWS_AT_ONCE), to = from + ROWS_AT_ONCE;
        if (from >= t->n)
            break;
        for (int64_t i = from; i < to && i < t->n; i++)
            sum_one_row(t, i, room);
    }
    leave_environment(found);
}

/* Few terms, as a token's slots are, need the stack alone; `taken` is the thread's memory for more. */
static void work(const struct task *t, atomic_llong *next, char *taken)
{
    struct part part[FEW_TERMS];
    float numbers[2 * FEW_TERMS];
    struct part *many = (struct part *)taken;
    sum_rows(t, next, many ? (struct room){many, (float *)(many + t->terms)} : (struct room){part, numbers});
}

static void run_threads(const struct task *t, char *taken, size_t bytes, int threads)
{
    atomic_llong next = 0;
#if defined(_OPENMP)
    if (threads > 1) {
        const int core = current_core();
#pragma omp parallel num_threads(threads)
        {
            if (omp_get_thread_num() > 0)
                leave_core(core);
            work(t, &next, taken ? taken + (size_t)omp_get_thread_num() * bytes : NULL);
        }
        return;
    }
#endif
    (void)threads, (void)bytes;
    work(t, &next, taken);
}

static int run_many(const struct task *t, int threads)
{
    int64_t bytes, all;
    if (__builtin_mul_overflow(t->terms, (int64_t)(sizeof(struct part) + 2 * sizeof(float)), &bytes)
        || __builtin_mul_overflow(bytes, (int64_t)threads, &all) || all > PTRDIFF_MAX / 2)
        return REFMOE_NO_MEMORY;
    bytes = (bytes + 63) / 64 * 64;
    char *taken = aligned_alloc(64, (size_t)bytes * (size_t)threads);
    if (!taken)
        return REFMOE_NO_MEMORY;
    run_threads(t, taken, (size_t)bytes, threads);
    free(taken);
    return REFMOE_OK;
}

static int run(const struct task *t, int threads)
{
    int64_t most = (t->n + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    if (refmoe_is_forked_child() || !refmoe_openmp() || most < 1)
        threads = 1;
    else if (threads > most)
        threads = (int)most;
    if (t->terms > FEW_TERMS)
        return run_many(t, threads);
    run_threads(t, NULL, 0, threads);
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
    int64_t outputs, limit = INT64_C(1) << 60;
    int status = check_how(how);
    if (status)
        return status;
    if (n < 0 || m < 0 || terms < 1 || terms > limit || __builtin_mul_overflow(n, m, &outputs) || outputs > limit)
        return REFMOE_BAD_SIZE;
    if (!term || (!out && outputs > 0))
        return REFMOE_BAD_POINTER;
    for (int64_t q = 0; q < terms && !status; q++) {
        status = check_view(&term[q].a, n, m);
        if (!status && term[q].b.array)
            status = check_view(&term[q].b, n, m);
    }
    return status;
}

/* ---- the public function ---- */

int refmoe_sum_f32(const refmoe_how *how, int64_t n, int64_t m, int64_t terms, const refmoe_term *term, float *out)
{
    int status = check(how, n, m, terms, term, out);
    if (status)
        return status;
    struct task task = {.sums = refmoe_kernel(how->kernel)->sums, .format = how->format, .force = how->force,
                        .n = n, .m = m, .terms = terms, .term = term, .out = out};
    return run(&task, how->threads);
}
