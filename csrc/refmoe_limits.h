/* refmoe_limits.h: what this machine can do at most, for `refmoe bench`. Part of the Python module, not of the C
   library.

   Each function works for a while with `threads` threads, all of which start together, and returns the seconds from
   there until the last has finished, or a negative number: no such kernel here, no such measure, no memory. What was
   done goes to *work: floating-point operations (a multiply-add is two), or bytes read. */

#ifndef REFMOE_LIMITS_H
#define REFMOE_LIMITS_H

#include <stdint.h>

/* cffi: begin */

/* Multiply-adds on registers alone, in the vectors of a kernel; profile: REFMOE_CHAIN float, REFMOE_EXACT double. */
double refmoe_limit_registers(int kernel, int profile, int threads, int64_t steps, double *work);

/* The kernel's own tile on operands that stay in the first-level cache: `steps` calls of the full tile with sums of
   `length` terms. lanes 0: the tile on packed panels (tile), 1: the one with rows of x across the lanes (lanes). */
double refmoe_limit_tile(int kernel, int profile, int lanes, int threads, int64_t length, int64_t steps, double *work);

/* Bytes that such a tile's operands take. */
int64_t refmoe_limit_tile_bytes(int kernel, int profile, int lanes, int64_t length);

/* The same of products of bf16, two k a step: multiply-adds on registers, and the kernel's tile of so many words of two
   k. Refused where the kernel or the processor has no such instruction. */
double refmoe_limit_pair_registers(int kernel, int threads, int64_t steps, double *work);
double refmoe_limit_pair_tile(int kernel, int threads, int64_t words, int64_t steps, double *work);
int64_t refmoe_limit_pair_tile_bytes(int64_t words);

/* Reads `bytes` bytes from `buffer` (8-byte aligned, bytes a multiple of 4096) `times` times; every thread reads its
   own part as `streams` streams side by side. */
double refmoe_limit_read(const void *buffer, int64_t bytes, int streams, int threads, int times, double *work);

/* cffi: end */

#endif
