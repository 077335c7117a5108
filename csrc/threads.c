/* threads.c: how a product's units are shared out among threads. All threads of the products live here. */

#define _GNU_SOURCE /* of placement.h, and POSIX */

#include <pthread.h>
#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "environment.h"
#include "placement.h"
#include "product.h"

/* ---- fork ---- */

static int is_forked_child;

static void note_fork(void) { is_forked_child = 1; }

int refmoe_is_forked_child(void) { return is_forked_child; }

__attribute__((constructor)) static void watch_fork(void) { pthread_atfork(NULL, NULL, note_fork); }

/* ---- sharing out the output ---- */

static void compute_singly(const struct product *p, const struct unit *unit, struct scratch *scratch)
{
    if (p->across && refmoe_is_across_outputs(p, unit))
        refmoe_compute_outputs(p, unit, scratch);
    else if (p->across)
        refmoe_compute_lanes(p, unit, scratch);
    else
        refmoe_compute_unit(p, unit, scratch);
}

/* What pairs may not compute is left to the tiles that take one k a step. */
static void compute_pairs(const struct product *p, const struct unit *unit, struct scratch *scratch)
{
    int64_t done = refmoe_compute_pairs(p, unit, scratch);
    scratch->report.paired += done * unit->rows;
    struct unit rest = *unit;
    rest.cols -= done, rest.out += done * (int64_t)p->item;
    rest.bias = rest.bias ? rest.bias + done * (int64_t)p->item : NULL;
    for (int q = 0; q < p->pairs; q++) {
        rest.pair[q].b += done * rest.pair[q].b_col * item_of(rest.pair[q].b_format);
        rest.pair[q].first += done;
    }
    if (rest.cols > 0)
        compute_singly(p, &rest, scratch);
}

static void compute(const struct product *p, const struct unit *unit, struct scratch *scratch, int64_t few)
{
    if (unit->rows <= few)
        refmoe_compute_few(p, unit, scratch);
    else if (p->doubles)
        refmoe_compute_doubles(p, unit, scratch);
    else if (p->paired)
        compute_pairs(p, unit, scratch);
    else
        compute_singly(p, unit, scratch);
}

/* Takes units of a share, at most so many. They are numbered through all experts: `begin` is the first of expert e. */
static void take_units(const struct product *p, const struct cut *cut, struct share *share, int64_t most,
                       struct scratch *scratch)
{
    int64_t e = 0, begin = 0, few = refmoe_few_rows(p), number;
    while (most-- > 0 && (number = atomic_fetch_add(&share->next, 1)) < share->end) {
        while (number >= begin + refmoe_units(p, cut, e))
            begin += refmoe_units(p, cut, e++);
        struct unit unit = refmoe_make_unit(p, cut, e, number - begin);
        compute(p, &unit, scratch, few);
    }
}

struct run {
    const struct product *p;
    const struct cut *cut;
    struct scratch *scratch;
    int threads;
};

/* A thread's own share lies together, so that it turns the rows of few experts that others turn too, and what it
   fetches ahead is its own; then it helps the others. */
static void work(const void *call, int thread, int64_t most)
{
    const struct run *run = call;
    if (most < INT64_MAX)
        take_units(run->p, run->cut, &run->scratch[thread].share[0], most, &run->scratch[thread]);
    else
        for (int i = 0; i < run->threads; i++)
            take_units(run->p, run->cut, &run->scratch[(thread + i) % run->threads].share[0], most,
                       &run->scratch[thread]);
}

/* ---- threads ---- */

static void work_here(team_function *function, const void *call, int thread, int64_t most)
{
    environment found = enter_environment();
    function(call, thread, most);
    leave_environment(found);
}

#if defined(_OPENMP)

/* The thread that called the others: after one unit they should have come. Who has not may be waiting for this core. */
static void work_first(team_function *function, const void *call, atomic_int *come, int team)
{
    work_here(function, call, 0, 1);
    if (atomic_load(come) < team)
        make_way();
    work_here(function, call, 0, INT64_MAX);
}

#endif

void refmoe_run_team(team_function *function, const void *call, int threads)
{
#if defined(_OPENMP)
    if (threads > 1) {
        const int core = current_core();
        atomic_int come = 1;
#pragma omp parallel num_threads(threads)
        {
            if (omp_get_thread_num() == 0) {
                work_first(function, call, &come, omp_get_num_threads());
            } else {
                atomic_fetch_add(&come, 1);
                leave_core(core);
                work_here(function, call, omp_get_thread_num(), INT64_MAX);
            }
        }
        return;
    }
#endif
    (void)threads; /* without OpenMP there is one */
    work_here(function, call, 0, INT64_MAX);
}

int refmoe_team_size(int threads, int64_t units)
{
    return is_forked_child || !refmoe_openmp() ? 1 : (int)lower(threads, units > 0 ? units : 1);
}

void refmoe_share_out(struct scratch *scratch, int stage, int64_t units, int threads)
{
    for (int64_t t = 0; t < threads; t++) {
        struct share *share = &scratch[t].share[stage];
        atomic_init(&share->next, units / threads * t + lower(t, units % threads));
        share->end = units / threads * (t + 1) + lower(t + 1, units % threads);
    }
}

refmoe_report refmoe_add_reports(const struct scratch *scratch, int threads, int64_t bytes)
{
    refmoe_report sum = {.workspace_bytes = bytes};
    for (int t = 0; t < threads; t++) {
        sum.rounding_test += scratch[t].report.rounding_test;
        sum.grid += scratch[t].report.grid;
        sum.compensated += scratch[t].report.compensated;
        sum.exact += scratch[t].report.exact;
        sum.paired += scratch[t].report.paired;
    }
    return sum;
}

/* ---- one product ---- */

/* A caller's workspace is asked for its size, or used; without one the memory is taken here. */
int refmoe_enter_room(refmoe_workspace *workspace, int64_t bytes, void **room)
{
    int64_t given = workspace ? workspace->bytes : bytes;
    *room = NULL;
    if (workspace)
        workspace->bytes = bytes > 0 ? bytes : given;
    if (bytes < 0)
        return REFMOE_NO_MEMORY;
    if (workspace && !workspace->at)
        return REFMOE_OK;
    if (given < bytes)
        return REFMOE_BAD_WORKSPACE;
    *room = workspace ? workspace->at : aligned_alloc(CACHE_LINE, (size_t)bytes);
    return *room ? REFMOE_OK : REFMOE_NO_MEMORY;
}

void refmoe_leave_room(const refmoe_workspace *workspace, void *room)
{
    if (!workspace)
        free(room);
}

int refmoe_run(const struct product *p, refmoe_workspace *workspace, refmoe_report *report)
{
    struct cut cut = refmoe_cut(p);
    int64_t units = 0;
    for (int64_t e = 0; e < p->experts; e++)
        units += refmoe_units(p, &cut, e);
    int threads = refmoe_team_size(p->threads, units);
    int64_t bytes = refmoe_workspace_bytes(p, &cut, threads);
    void *room;
    int status = refmoe_enter_room(workspace, bytes, &room);
    if (!room)
        return status;
    struct scratch *scratch = refmoe_lay_out(p, &cut, threads, room);
    struct run call = {p, &cut, scratch, threads};
    refmoe_share_out(scratch, 0, units, threads);
    refmoe_run_team(work, &call, threads);
    if (report)
        *report = refmoe_add_reports(scratch, threads, bytes);
    refmoe_leave_room(workspace, room);
    return REFMOE_OK;
}
