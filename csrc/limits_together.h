/* limits_together.h: threads that start together, for the measures of limits.c and limits_pairs.c. */

#ifndef REFMOE_LIMITS_TOGETHER_H
#define REFMOE_LIMITS_TOGETHER_H

#include <stdint.h>
#include <time.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "environment.h"

/* The compiler must assume that what lies there is read. */
#define KEEP(address) __asm__ volatile("" : : "r"(address) : "memory")

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef void task(void *of, int thread, int threads);

static inline double run_together(task *work, void *of, int threads)
{
    double start = 0, end = 0;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            environment found = enter_environment();
#pragma omp barrier
#pragma omp master
            start = now();
            work(of, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
#pragma omp master
            end = now();
            leave_environment(found);
        }
        return end - start;
    }
#endif
    environment found = enter_environment();
    start = now();
    work(of, 0, 1);
    end = now();
    leave_environment(found);
    (void)threads;
    return end - start;
}

/* A parallel region may be given fewer threads than it asked for: the work counts those that came. */
static inline int threads_that_come(int threads)
{
    int came = 1;
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
#pragma omp master
        came = omp_get_num_threads();
    }
#endif
    (void)threads;
    return came;
}

#endif
