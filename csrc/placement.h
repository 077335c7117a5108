/* placement.h: a thread that slept is often woken on the core of the one that woke it, and a call of a few milliseconds
   is over before the system parts them: one core does the work of two. A thread that finds itself there leaves, once;
   where it may run stays as it was. But first it must run there: who called it makes way when others have not come. */

#ifndef REFMOE_PLACEMENT_H
#define REFMOE_PLACEMENT_H

#if defined(__linux__)

#include <sched.h>

static inline int current_core(void) { return sched_getcpu(); }

static inline void leave_core(int core)
{
    cpu_set_t allowed, others;
    if (core < 0 || sched_getcpu() != core || sched_getaffinity(0, sizeof allowed, &allowed))
        return;
    others = allowed;
    CPU_CLR((size_t)core, &others);
    if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0)
        (void)sched_setaffinity(0, sizeof allowed, &allowed);
}

static inline void make_way(void) { (void)sched_yield(); }

#else

static inline void make_way(void) {}
static inline int current_core(void) { return -1; }
static inline void leave_core(int core) { (void)core; }

#endif

/* One turn of a loop that waits for another thread: at first on the spot, then it lets others have the core. */
static inline void wait_a_turn(int turn)
{
    enum { ON_THE_SPOT = 1 << 10 };
    if (turn > ON_THE_SPOT)
        make_way();
#if defined(__SSE2__)
    else
        __builtin_ia32_pause();
#endif
}

#endif
