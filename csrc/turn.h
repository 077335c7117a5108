/* turn.h: rows of floats become columns. */

#ifndef REFMOE_TURN_H
#define REFMOE_TURN_H

#include <stdint.h>
#include <string.h>

typedef float four __attribute__((vector_size(16)));
typedef int32_t four_int __attribute__((vector_size(16)));

/* Elements of a and b (numbered 0-3, 4-7) in a new order; the two compilers name it differently. */
#if defined(__clang__)
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (four_int){i, j, k, l})
#endif

/* to[k][j] = x[j][k] for four k and four j; rows of x are `step` apart, those of `to` `width`. */
static inline void turn_four(const float *x, int64_t step, int64_t width, float *to)
{
    four r[4], low, high, left, right;
    for (int j = 0; j < 4; j++)
        memcpy(&r[j], x + j * step, sizeof r[j]);
    low = MIX(r[0], r[1], 0, 4, 1, 5), high = MIX(r[2], r[3], 0, 4, 1, 5);
    left = MIX(r[0], r[1], 2, 6, 3, 7), right = MIX(r[2], r[3], 2, 6, 3, 7);
    r[0] = MIX(low, high, 0, 1, 4, 5), r[1] = MIX(low, high, 2, 3, 6, 7);
    r[2] = MIX(left, right, 0, 1, 4, 5), r[3] = MIX(left, right, 2, 3, 6, 7);
    for (int k = 0; k < 4; k++)
        memcpy(to + k * width, &r[k], sizeof r[k]);
}

/* to[k][j] = x[j][k] for `length` k and `count` j. */
static inline void turn_block(const float *x, int64_t step, int64_t length, int64_t count, int64_t width, float *to)
{
    int64_t whole = count / 4 * 4, fours = length / 4 * 4;
    for (int64_t j = 0; j < whole; j += 4)
        for (int64_t k = 0; k < fours; k += 4)
            turn_four(x + k + j * step, step, width, to + k * width + j);
    for (int64_t j = 0; j < count; j++)
        for (int64_t k = j < whole ? fours : 0; k < length; k++)
            to[k * width + j] = x[k + j * step];
}

#endif
