/* environment.h: the floating-point environment of a thread: all exceptions masked, round to nearest, no flush to zero,
   subnormals are numbers. A thread enters it before its first sum and puts back what it found. */

#ifndef REFMOE_ENVIRONMENT_H
#define REFMOE_ENVIRONMENT_H

#include <stdint.h>

#if defined(__SSE2__)

#include <xmmintrin.h>

typedef unsigned environment;

static inline environment enter_environment(void)
{
    environment found = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return found;
}

static inline void leave_environment(environment found) { _mm_setcsr(found); }

#elif defined(__aarch64__)

typedef uint64_t environment;

static inline void leave_environment(environment found) { __asm__ volatile("msr fpcr, %0" : : "r"(found) : "memory"); }

static inline environment enter_environment(void)
{
    environment found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found) : : "memory");
    leave_environment(0);
    return found;
}

#elif defined(__arm__) && defined(__ARM_FP) && (__ARM_FP & 8) /* double precision in hardware */

typedef uint32_t environment;

static inline void leave_environment(environment found)
{
    __asm__ volatile("vmsr fpscr, %0" : : "r"(found) : "memory", "vfpcc");
}

static inline environment enter_environment(void)
{
    environment found;
    __asm__ volatile("vmrs %0, fpscr" : "=r"(found) : : "memory");
    leave_environment(0);
    return found;
}

#else
#error "refmoe must set each thread's floating-point environment; this processor's way is still to be written"
#endif

#endif
