/* share_out.h: numbers 0 .. size of something, shared out among threads: each takes the next few until none is left.
   Who includes this defines _GNU_SOURCE first, for placement.h. */

#ifndef REFMOE_SHARE_OUT_H
#define REFMOE_SHARE_OUT_H

#include <stdatomic.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "environment.h"
#include "placement.h"
#include "tile.h"

/* Numbers begin .. end of the call's results; threads count from 0, the caller's. */
typedef void range_function(const void *call, int64_t begin, int64_t end, int thread);

/* The work and what is left of it. */
struct work {
    range_function *function;
    const void *call;
    int64_t size, at_once;
    atomic_llong next;
    atomic_int come; /* threads */
};

/* At most `most` times the next numbers. */
static inline void take_ranges(struct work *w, int64_t most, int thread)
{
    environment found = enter_environment();
    for (int64_t from; most-- > 0 && (from = atomic_fetch_add(&w->next, w->at_once)) < w->size;)
        w->function(w->call, from, w->size - from < w->at_once ? w->size : from + w->at_once, thread);
    leave_environment(found);
}

#if defined(_OPENMP)

/* After its first numbers the caller makes way for those that have not come: they may be waiting for its core. */
static inline void take_share(struct work *w, int core, int thread, int team)
{
    if (thread > 0) {
        atomic_fetch_add(&w->come, 1);
        leave_core(core);
    } else {
        take_ranges(w, 1, thread);
        if (atomic_load(&w->come) + 1 < team)
            make_way();
    }
    take_ranges(w, INT64_MAX, thread);
}

#endif

/* How many of `threads` find something to do; a forked child has one. */
static inline int threads_of(int64_t size, int64_t at_once, int threads)
{
    int64_t most = size / at_once + (size % at_once > 0);
    if (refmoe_is_forked_child() || !refmoe_openmp() || most < 1)
        return 1;
    return threads < most ? threads : (int)most;
}

static inline void share_out(range_function *function, const void *call, int64_t size, int64_t at_once, int threads)
{
    struct work work = {.function = function, .call = call, .size = size, .at_once = at_once};
    atomic_init(&work.next, 0);
    atomic_init(&work.come, 0);
    threads = threads_of(size, at_once, threads);
#if defined(_OPENMP)
    if (threads > 1) {
        const int core = current_core();
#pragma omp parallel num_threads(threads)
        take_share(&work, core, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    take_ranges(&work, INT64_MAX, 0);
}

#endif
