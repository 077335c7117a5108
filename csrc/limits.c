/* limits.c: what this machine can do at most: multiply-adds on registers, tiles in cache, bytes from memory.

   The work must happen although nobody wants its result: operands pass through empty assembly that the compiler cannot
   see through, and results go where it must assume they are read (limits_together.h).                              */

#define _POSIX_C_SOURCE 200809L

#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "limits_together.h"
#include "refmoe_limits.h"
#include "product.h"

/* ---- multiply-adds on registers ---- */

enum { CHAINS = 12 }; /* enough for a latency of four to six and two units; they and two factors fit 16 registers */

typedef void register_loop(int64_t steps);

#define REGISTER_LOOP(name, target, vector, fma, spread)                                                              \
    static target void name(int64_t steps)                                                                            \
    {                                                                                                                 \
        vector sum[CHAINS], a = spread(-1.0), b = spread(1.1); /* the sums keep changing */                            \
        for (int i = 0; i < CHAINS; i++)                                                                              \
            sum[i] = spread(0.1 * (i + 1));                                                                           \
        for (int64_t s = 0; s < steps; s++) {                                                                         \
            __asm__ volatile("" : HOLD(a), HOLD(b));                                                                  \
            for (int i = 0; i < CHAINS; i++)                                                                          \
                sum[i] = fma(sum[i], a, b);                                                                           \
        }                                                                                                             \
        KEEP(sum);                                                                                                    \
    }

#if defined(__x86_64__)
#define HOLD(x) "+x"(x)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
REGISTER_LOOP(chain_avx2, AVX2, __m256, _mm256_fmadd_ps, _mm256_set1_ps)
REGISTER_LOOP(exact_avx2, AVX2, __m256d, _mm256_fmadd_pd, _mm256_set1_pd)
#undef HOLD
#define HOLD(x) "+v"(x)
REGISTER_LOOP(chain_avx512, AVX512, __m512, _mm512_fmadd_ps, _mm512_set1_ps)
REGISTER_LOOP(exact_avx512, AVX512, __m512d, _mm512_fmadd_pd, _mm512_set1_pd)
#elif defined(__aarch64__)
#define HOLD(x) "+w"(x)
#define NEON_CHAIN(x, a, b) vfmaq_f32(b, x, a)
#define NEON_EXACT(x, a, b) vfmaq_f64(b, x, a)
REGISTER_LOOP(chain_neon, , float32x4_t, NEON_CHAIN, vdupq_n_f32)
REGISTER_LOOP(exact_neon, , float64x2_t, NEON_EXACT, vdupq_n_f64)
#endif

/* One row a kernel that has a multiply-add instruction; the portable kernel has none. */
static const struct registers {
    const char *kernel;
    int bytes;
    register_loop *chain, *exact;
} registers[] = {
#if defined(__x86_64__)
    {"avx2", 32, chain_avx2, exact_avx2},
    {"avx512", 64, chain_avx512, exact_avx512},
#elif defined(__aarch64__)
    {"neon", 16, chain_neon, exact_neon},
#endif
    {NULL, 0, NULL, NULL},
};

struct register_work {
    register_loop *loop;
    int64_t steps;
};

static void run_registers(void *of, int thread, int threads)
{
    struct register_work *w = of;
    w->loop(w->steps);
    (void)thread, (void)threads;
}

double refmoe_limit_registers(int kernel, int profile, int threads, int64_t steps, double *work)
{
    const struct kernel *k = refmoe_kernel(kernel);
    const struct registers *row = registers;
    while (k && row->kernel && strcmp(row->kernel, k->name))
        row++;
    if (!k || !row->kernel || (profile != REFMOE_CHAIN && profile != REFMOE_EXACT) || threads < 1 || steps < 0)
        return -1;
    int chain = profile == REFMOE_CHAIN, lanes = row->bytes / (int)(chain ? sizeof(float) : sizeof(double));
    struct register_work w = {chain ? row->chain : row->exact, steps};
    *work = 2.0 * CHAINS * lanes * (double)steps * threads_that_come(threads);
    return run_together(run_registers, &w, threads);
}

/* ---- the kernel's tile on operands in cache ---- */

struct tile_work {
    const struct kernel *kernel;
    int profile, lanes, rows, cols;
    int64_t length, steps, left, right, sums; /* the last three: bytes of the operands */
    char *room;                               /* of all threads */
};

static int describe_tile(struct tile_work *w, int kernel, int profile, int lanes, int64_t length)
{
    const struct kernel *k = refmoe_kernel(kernel);
    if (!k || (profile != REFMOE_CHAIN && profile != REFMOE_EXACT) || lanes < 0 || lanes > 1 || length < 1)
        return 0;
    const struct lanes *l = &k->lanes[profile];
    int64_t item = profile == REFMOE_CHAIN ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
    if (length > (lanes ? LEFT_BYTES / item : 1 << 20) || (lanes && l->shapes < 1))
        return 0;
    w->kernel = k, w->profile = profile, w->lanes = lanes, w->length = length;
    w->rows = lanes ? l->rows : k->tile[profile].rows, w->cols = lanes ? l->width[0] : k->tile[profile].cols;
    w->left = lanes ? w->rows * (int64_t)LEFT_PITCH : w->rows * length * item;
    w->right = w->cols * length * (lanes ? item : (int64_t)sizeof(float));
    w->sums = w->rows * w->cols * item;
    w->left = whole_tiles(w->left, 64), w->right = whole_tiles(w->right, 64), w->sums = whole_tiles(w->sums, 64);
    return 1;
}

/* Numbers of both signs between 0.5 and 1: sums of them wander, but neither overflow nor become subnormal. (Zeros would
   take less power, and so perhaps less time.) */
static void fill(void *room, int64_t bytes, int is_double)
{
    uint64_t state = 1;
    for (int64_t i = 0; i < bytes / (is_double ? 8 : 4); i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        double x = (double)(state >> 40) * 0x1p-25 + 0.5;
        x = state >> 39 & 1 ? -x : x;
        if (is_double)
            ((double *)room)[i] = x;
        else
            ((float *)room)[i] = (float)x;
    }
}

static void fill_tile(const struct tile_work *w, char *room)
{
    int is_double = w->profile == REFMOE_EXACT;
    fill(room, w->left, is_double);
    fill(room + w->left, w->right, is_double && w->lanes);
    memset(room + w->left + w->right, 0, (size_t)w->sums);
}

static void run_tiles(void *of, int thread, int threads)
{
    struct tile_work *w = of;
    char *left = w->room + thread * (w->left + w->right + w->sums), *right = left + w->left, *sums = right + w->right;
    const struct lanes *l = &w->kernel->lanes[w->profile];
    struct lane_run run = {.length = w->length, .right_step = w->cols, .from_row = w->cols, .to_row = w->cols,
                           .left = left, .right = right, .from = sums, .to = sums, .ahead = left, .lines = w->length};
    for (int64_t s = 0; s < w->steps; s++) {
        if (w->lanes)
            l->along[0](w->rows, &run);
        else
            w->kernel->tile[w->profile].multiply(w->rows, w->length, left, right, w->cols, sums);
        KEEP(sums);
    }
    (void)threads;
}

int64_t refmoe_limit_tile_bytes(int kernel, int profile, int lanes, int64_t length)
{
    struct tile_work w;
    return describe_tile(&w, kernel, profile, lanes, length) ? w.left + w.right + w.sums : -1;
}

double refmoe_limit_tile(int kernel, int profile, int lanes, int threads, int64_t length, int64_t steps, double *work)
{
    struct tile_work w;
    if (!describe_tile(&w, kernel, profile, lanes, length) || threads < 1 || steps < 0)
        return -1;
    size_t bytes = (size_t)(w.left + w.right + w.sums) * (size_t)threads;
    w.steps = steps, w.room = aligned_alloc(64, bytes);
    if (!w.room)
        return -1;
    for (int t = 0; t < threads; t++)
        fill_tile(&w, w.room + t * (w.left + w.right + w.sums));
    *work = 2.0 * w.rows * w.cols * (double)length * (double)steps * threads_that_come(threads);
    double seconds = run_together(run_tiles, &w, threads);
    free(w.room);
    return seconds;
}

/* ---- bytes from memory ---- */

enum { LINE = 64, AHEAD = 4096, MAX_STREAMS = 8 };

typedef uint64_t line __attribute__((vector_size(LINE), aligned(8), may_alias));

struct read_work {
    const char *buffer;
    int64_t lines;
    int streams, times;
};

static void read_streams(const char *from, int64_t lines, const int streams, line *sum)
{
    int64_t each = lines / streams;
    for (int64_t i = 0; i < each; i++)
        for (int s = 0; s < streams; s++) {
            const char *at = from + (s * each + i) * LINE;
            __builtin_prefetch(at + AHEAD, 0, 2); /* into the second cache: the first has too few places to wait in */
            sum[s] ^= *(const line *)at;
        }
    for (int64_t i = streams * each; i < lines; i++)
        sum[0] ^= *(const line *)(from + i * LINE);
}

static void run_read(void *of, int thread, int threads)
{
    struct read_work *w = of;
    int64_t first = w->lines * thread / threads, last = w->lines * (thread + 1) / threads;
    line sum[MAX_STREAMS] = {{0}};
    for (int t = 0; t < w->times; t++) {
        switch (w->streams) {
        case 1: read_streams(w->buffer + first * LINE, last - first, 1, sum); break;
        case 2: read_streams(w->buffer + first * LINE, last - first, 2, sum); break;
        case 4: read_streams(w->buffer + first * LINE, last - first, 4, sum); break;
        case 8: read_streams(w->buffer + first * LINE, last - first, 8, sum); break;
        }
        KEEP(sum);
    }
}

double refmoe_limit_read(const void *buffer, int64_t bytes, int streams, int threads, int times, double *work)
{
    if (!buffer || bytes < 0 || streams < 1 || streams > MAX_STREAMS || (streams & (streams - 1)) || threads < 1)
        return -1;
    struct read_work w = {buffer, bytes / LINE, streams, times};
    *work = (double)(w.lines * LINE) * times;
    return run_together(run_read, &w, threads);
}
