/* limits_pairs.c: what this machine can do at most with two k a step: products of bf16 on registers, and in the tile of
   pairs.c. */

#define _POSIX_C_SOURCE 200809L

#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "limits_together.h"
#include "refmoe_limits.h"
#include "product.h"

static const struct pairs *pairs_of(int kernel)
{
    const struct kernel *k = refmoe_kernel(kernel);
    return k && k->pairs && k->pairs->runs_here() ? k->pairs : NULL;
}

/* ---- registers ---- */

enum { CHAINS = 12, OPERATIONS = 64 }; /* of an instruction: 16 lanes, two multiply-adds each */

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) static void run_registers(void *of, int thread, int threads)
{
    __m512 sum[CHAINS];
    __m512i a = _mm512_set1_epi32(0x3F80BF80), b = _mm512_set1_epi32(0x3F8D3F8C); /* 1 and -1; about 1.1: sums wander */
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps(0.1f * (float)(i + 1));
    for (int64_t s = *(const int64_t *)of; s > 0; s--) {
        __asm__ volatile("" : "+v"(a), "+v"(b));
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b);
    }
    KEEP(sum);
    (void)thread, (void)threads;
}
#else
static void run_registers(void *of, int thread, int threads) { (void)of, (void)thread, (void)threads; }
#endif

double refmoe_limit_pair_registers(int kernel, int threads, int64_t steps, double *work)
{
    if (!pairs_of(kernel) || threads < 1 || steps < 0)
        return -1;
    *work = (double)OPERATIONS * CHAINS * (double)steps * threads_that_come(threads);
    return run_together(run_registers, &steps, threads);
}

/* ---- the tile on operands in cache ---- */

struct pair_work {
    const struct pairs *pairs;
    int64_t words, steps;
    uint32_t *room; /* of all threads */
};

static int64_t room_words(int64_t words) { return words * (PAIR_ROWS + PAIR_COLS) + PAIR_ROWS * PAIR_COLS; }

static void run_tiles(void *of, int thread, int threads)
{
    const struct pair_work *w = of;
    uint32_t *right = w->room + thread * room_words(w->words), *left = right + w->words * PAIR_COLS;
    float *sums = (float *)(left + w->words * PAIR_ROWS);
    struct pair_run run = {.words = w->words, .to_row = PAIR_COLS, .lines = w->words, .left = left, .right = right,
                           .from = sums, .to = sums, .fetch = (const char *)right, .ends = -1};
    for (int64_t s = 0; s < w->steps; s++) {
        w->pairs->multiply(PAIR_ROWS, &run);
        KEEP(sums);
    }
    (void)threads;
}

/* Words of both signs, of magnitudes between 1 and 2: no sum is subnormal, and zeros would take less power. */
static void fill(uint32_t *room, int64_t words)
{
    uint32_t state = 1;
    for (int64_t i = 0; i < words; i++) {
        state = state * 1664525u + 1013904223u;
        room[i] = (state & 0x807F807Fu) | 0x3F803F80u;
    }
}

int64_t refmoe_limit_pair_tile_bytes(int64_t words) { return room_words(words) * (int64_t)sizeof(uint32_t); }

double refmoe_limit_pair_tile(int kernel, int threads, int64_t words, int64_t steps, double *work)
{
    struct pair_work w = {pairs_of(kernel), words, steps, NULL};
    if (!w.pairs || threads < 1 || words < 1 || words > 1 << 20 || steps < 0)
        return -1;
    int64_t each = room_words(words);
    w.room = aligned_alloc(64, (size_t)whole_tiles(each * threads * (int64_t)sizeof(uint32_t), 64));
    if (!w.room)
        return -1;
    for (int t = 0; t < threads; t++) {
        fill(w.room + t * each, each - PAIR_ROWS * PAIR_COLS);
        memset(w.room + (t + 1) * each - PAIR_ROWS * PAIR_COLS, 0, PAIR_ROWS * PAIR_COLS * sizeof(uint32_t));
    }
    *work = 4.0 * PAIR_ROWS * PAIR_COLS * (double)words * (double)steps * threads_that_come(threads);
    double seconds = run_together(run_tiles, &w, threads);
    free(w.room);
    return seconds;
}
