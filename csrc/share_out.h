/* share_out.h: numbers 0 .. size of something, shared out among threads. */

#ifndef REFMOE_SHARE_OUT_H
#define REFMOE_SHARE_OUT_H

#include "environment.h"
#include "tile.h"

/* Numbers begin .. end of the call's results. */
typedef void range_function(const void *call, int64_t begin, int64_t end);

static inline void run_range(range_function *function, const void *call, int64_t begin, int64_t end)
{
    environment found = enter_environment();
    function(call, begin, end);
    leave_environment(found);
}

/* `at_once`: how many a thread takes at a time. */
static inline void share_out(range_function *function, const void *call, int64_t size, int64_t at_once, int threads)
{
    int64_t runs = size / at_once + 1;
    threads = refmoe_is_forked_child() ? 1 : threads < runs ? threads : (int)runs;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (int64_t i = 0; i < runs; i++)
            run_range(function, call, i * at_once, i + 1 < runs ? (i + 1) * at_once : size);
        return;
    }
#endif
    run_range(function, call, 0, size);
}

#endif
