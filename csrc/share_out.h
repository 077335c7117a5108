/* share_out.h: numbers 0 .. size of something, shared out among threads: each takes the next few until none is left. */

#ifndef REFMOE_SHARE_OUT_H
#define REFMOE_SHARE_OUT_H

#include "product.h"

/* Whether a table of so many rows and columns can be in memory. */
static inline int is_size(int64_t n, int64_t m)
{
    int64_t size, limit = INT64_C(1) << 60;
    return n >= 0 && m >= 0 && !__builtin_mul_overflow(n, m, &size) && size <= limit;
}

/* Numbers begin .. end of the call's results; threads count from 0, the caller's. */
typedef void range_function(const void *call, int64_t begin, int64_t end, int thread);

struct ranges {
    range_function *function;
    const void *call;
    int64_t size, at_once;
    atomic_llong *next;
};

/* A team_function: at most `most` times the next numbers. */
static void take_ranges(const void *ranges, int thread, int64_t most)
{
    const struct ranges *r = ranges;
    for (int64_t from; most-- > 0 && (from = atomic_fetch_add(r->next, r->at_once)) < r->size;)
        r->function(r->call, from, lower(from + r->at_once, r->size), thread);
}

/* How many of `threads` find something to do. */
static inline int threads_of(int64_t size, int64_t at_once, int threads)
{
    return refmoe_team_size(threads, size / at_once + (size % at_once > 0));
}

static inline void share_out(range_function *function, const void *call, int64_t size, int64_t at_once, int threads)
{
    atomic_llong next = 0;
    const struct ranges ranges = {function, call, size, at_once, &next};
    refmoe_run_team(take_ranges, &ranges, threads_of(size, at_once, threads));
}

#endif
