/* refuse.c: the C functions called badly, and in a forked child; what a caller without Python relies on. */

#define _POSIX_C_SOURCE 200809L

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "memory.h"
#include "refmoe_experts.h"

enum { E = 2, N = 3, M = 4, K = 5 };

static int failures;

static void expect(const char *what, int want, int got)
{
    if (want != got) {
        printf("FAIL %s: expected status %d, got %d\n", what, want, got);
        failures++;
    }
}

/* ---- refusals: each is one change to a good call; `out` must keep its bytes ---- */

static const int64_t good_offsets[E + 1] = {0, 2, 3}, late[E + 1] = {1, 2, 3}, falling[E + 1] = {0, 4, 3},
                     beyond[E + 1] = {0, 2, 4}, negative[E + 1] = {0, -1, 3};
static float x[N * K], w[E * M * K], d[N * M], out[E * M * K];

struct call {
    const char *name;
    int status;
    refmoe_how how;
    int64_t e, n, m, k;
    const int64_t *offsets;
    const float *x, *w;
    float *out;
};

#define HOW(kernel_, threads_, profile_, format_, force_, ...)                                                        \
    {.kernel = kernel_, .threads = threads_, .profile = profile_, .format = format_, .force = force_, __VA_ARGS__}
#define SIZES(e_, n_, m_, k_) .e = e_, .n = n_, .m = m_, .k = k_
#define ARRAYS(offsets_, x_, w_, out_) .offsets = offsets_, .x = x_, .w = w_, .out = out_
#define WITH_HOW(status_, ...)                                                                                        \
    {#__VA_ARGS__, status_, HOW(__VA_ARGS__), SIZES(E, N, M, K), ARRAYS(good_offsets, x, w, out)}
#define WITH_SIZES(status_, ...)                                                                                      \
    {"sizes " #__VA_ARGS__, status_, HOW(0, 2, REFMOE_EXACT, REFMOE_FLOAT32, 0), SIZES(__VA_ARGS__),                  \
     ARRAYS(good_offsets, x, w, out)}
#define WITH_ARRAYS(status_, ...)                                                                                     \
    {"arrays " #__VA_ARGS__, status_, HOW(0, 2, REFMOE_EXACT, REFMOE_FLOAT32, 0), SIZES(E, N, M, K),                  \
     ARRAYS(__VA_ARGS__)}

static const struct call calls[] = {
    WITH_HOW(REFMOE_BAD_KERNEL, -1, 1, REFMOE_EXACT, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_KERNEL, 99, 1, REFMOE_EXACT, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_THREADS, 0, 0, REFMOE_EXACT, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_THREADS, 0, INT32_MIN, REFMOE_EXACT, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_PROFILE, 0, 1, REFMOE_UNFUSED, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_PROFILE, 0, 1, -1, REFMOE_FLOAT32, 0),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_EXACT, REFMOE_FLOAT64, 0),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_EXACT, -1, 0),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_EXACT, REFMOE_FLOAT32, 0, .left_format = REFMOE_FLOAT64),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_EXACT, REFMOE_FLOAT32, 0, .right_format = REFMOE_FLOAT64),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_CHAIN, REFMOE_FLOAT32, 0, .left_format = -1),
    WITH_HOW(REFMOE_BAD_FORMAT, 0, 1, REFMOE_CHAIN, REFMOE_FLOAT32, 0, .right_format = 12),
    WITH_HOW(REFMOE_BAD_FORCE, 0, 1, REFMOE_EXACT, REFMOE_FLOAT32, 3),
    WITH_HOW(REFMOE_BAD_FORCE, 0, 1, REFMOE_EXACT, REFMOE_FLOAT32, -1),
    WITH_HOW(REFMOE_BAD_FORCE, 0, 1, REFMOE_CHAIN, REFMOE_FLOAT32, 1),
    WITH_SIZES(REFMOE_BAD_SIZE, -1, N, M, K),
    WITH_SIZES(REFMOE_BAD_SIZE, E, -1, M, K),
    WITH_SIZES(REFMOE_BAD_SIZE, E, N, -1, K),
    WITH_SIZES(REFMOE_BAD_SIZE, E, N, M, -1),
    WITH_SIZES(REFMOE_BAD_SIZE, E, N, INT64_MAX, K),
    WITH_SIZES(REFMOE_BAD_SIZE, E, N, INT64_C(1) << 40, INT64_C(1) << 40),
    WITH_SIZES(REFMOE_NO_MEMORY, E, N, M, INT64_C(1) << 50),
#if UINTPTR_MAX == UINT32_MAX
    WITH_SIZES(REFMOE_NO_MEMORY, E, N, M, (INT64_C(1) << 32) + 5), /* bytes that size_t would cut to a few */
#endif
    WITH_SIZES(REFMOE_BAD_OFFSETS, E, N + 1, M, K),
    WITH_ARRAYS(REFMOE_BAD_OFFSETS, late, x, w, out),
    WITH_ARRAYS(REFMOE_BAD_OFFSETS, falling, x, w, out),
    WITH_ARRAYS(REFMOE_BAD_OFFSETS, beyond, x, w, out),
    WITH_ARRAYS(REFMOE_BAD_OFFSETS, negative, x, w, out),
    WITH_ARRAYS(REFMOE_BAD_POINTER, NULL, x, w, out),
    WITH_ARRAYS(REFMOE_BAD_POINTER, good_offsets, NULL, w, out),
    WITH_ARRAYS(REFMOE_BAD_POINTER, good_offsets, x, NULL, out),
    WITH_ARRAYS(REFMOE_BAD_POINTER, good_offsets, x, w, NULL),
};

static int is_untouched(void)
{
    const unsigned char *byte = (const unsigned char *)out;
    for (size_t i = 0; i < sizeof out; i++)
        if (byte[i] != 0xA5)
            return 0;
    return 1;
}

/* The three products take the same checks; d stands for the operand that the forward product does not have. */
static void check_refusal(const struct call *c)
{
    const refmoe_pair_f32 pair = {c->x ? d : NULL, c->w, c->m};
    memset(out, 0xA5, sizeof out);
    expect(c->name, c->status, refmoe_grouped_matmul_f32(&c->how, c->e, c->n, c->m, c->k, c->offsets, c->x, c->w,
                                                         NULL, NULL, c->out, NULL));
    if (c->status == REFMOE_NO_MEMORY) /* only where K is what is summed over */
        return;
    expect(c->name, c->status, refmoe_grouped_matmul_backward_x_f32(&c->how, c->e, c->n, c->k, c->offsets, 1, &pair,
                                                                    NULL, c->out, NULL));
    if (c->w)
        expect(c->name, c->status, refmoe_grouped_matmul_backward_w_f32(&c->how, c->e, c->n, c->m, c->k, c->offsets, d,
                                                                        c->x, NULL, c->out, NULL));
}

static void check_pairs(void)
{
    const refmoe_how how = HOW(0, 1, REFMOE_EXACT, REFMOE_FLOAT32, 0);
    const refmoe_pair_f32 pair[3] = {{d, w, M}, {d, w, M}, {d, w, M}};
    const int32_t count[] = {0, -1, 3, INT32_MAX};
    for (int i = 0; i < 4; i++)
        expect("a number of pairs", REFMOE_BAD_SIZE,
               refmoe_grouped_matmul_backward_x_f32(&how, E, N, K, good_offsets, count[i], pair, NULL, out, NULL));
}

static void check_table(void)
{
    const int wrong[] = {-1, refmoe_kernel_count(), INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        expect("the name of no kernel", 1, refmoe_kernel_name(wrong[i]) == NULL);
        expect("the needs of no kernel", 1, refmoe_kernel_needs(wrong[i]) == NULL);
        expect("no kernel runs", 0, refmoe_kernel_runs_here(wrong[i]));
        expect("the tile of no kernel", 0, refmoe_tile_rows(wrong[i], 0) + refmoe_tile_cols(wrong[i], 0));
    }
    expect("the tile of no profile", 0, refmoe_tile_rows(0, 3) + refmoe_tile_cols(0, -1));
}

/* ---- what asks for memory: the products, and experts with few rows ---- */

typedef int asking(const refmoe_how *how);

static int forward(const refmoe_how *how)
{
    return refmoe_grouped_matmul_f32(how, E, N, M, K, good_offsets, x, w, NULL, NULL, out, NULL);
}

static int back_to_x(const refmoe_how *how)
{
    const refmoe_pair_f32 pair[2] = {{d, w, M}, {d, w, M}};
    return refmoe_grouped_matmul_backward_x_f32(how, E, N, K, good_offsets, 2, pair, NULL, out, NULL);
}

static int back_to_w(const refmoe_how *how)
{
    return refmoe_grouped_matmul_backward_w_f32(how, E, N, M, K, good_offsets, d, x, NULL, out, NULL);
}

/* Plain experts; their y and its sum by slot are `out`. REFMOE_MANY_ROWS from kernels that have no such function. */
static int few_rows(const refmoe_how *how)
{
    static float up_rows[N * M], hidden[N * M];
    static const float weights[N] = {1, 1, 1};
    static const int64_t slot_row[N] = {2, 0, -1};
    const refmoe_activation act = {.name = REFMOE_RELU, .alpha = 1, .limit = INFINITY};
    const refmoe_linear gate = {NULL, NULL, NULL}, up = {w, NULL, up_rows}, down = {w, NULL, out};
    const refmoe_slots slots = {N, 1, weights, slot_row, out + N * K};
    int64_t left_open;
    return refmoe_feed_forward_f32(how, E, N, K, M, good_offsets, x, &act, &gate, &up, NULL, hidden, NULL, &down,
                                   &slots, &left_open, NULL);
}

/* ---- memory refused at each place in turn ---- */

static void check_memory(asking *call, int kernel, int profile)
{
    const refmoe_how how = HOW(kernel, 2, profile, REFMOE_FLOAT32, 0);
    int status = REFMOE_NO_MEMORY, allowed = 0;
    for (; status == REFMOE_NO_MEMORY && allowed < 100; allowed++) {
        memset(out, 0xA5, sizeof out);
        allocations_allowed = allowed;
        status = call(&how);
        expect("memory refused", status == REFMOE_NO_MEMORY, is_untouched());
    }
    allocations_allowed = INT32_MAX;
    expect("memory granted", REFMOE_OK, status);
    expect("memory is asked for once", 2, allowed);
}

/* ---- a workspace of the caller's: asked for, too small, enough ---- */

static void check_own_workspace(asking *call, int kernel, int profile)
{
    refmoe_workspace own = {NULL, -1};
    const refmoe_how how = HOW(kernel, 2, profile, REFMOE_FLOAT32, 0, .workspace = &own);
    const refmoe_how wrong = HOW(kernel, 0, profile, REFMOE_FLOAT32, 0, .workspace = &own);
    memset(out, 0xA5, sizeof out);
    expect("a bad call with a workspace", REFMOE_BAD_THREADS, call(&wrong));
    expect("its size is left alone", 1, own.bytes == -1);
    taken_bytes = 0;
    expect("a workspace asked for", REFMOE_OK, call(&how));
    int64_t bytes = own.bytes;
    char *room = malloc((size_t)bytes);
    expect("its size", 1, bytes > 0 && room);
    const int64_t too_few[] = {bytes - 1, 0, -1, INT64_MIN};
    for (int i = 0; i < 4; i++) {
        own = (refmoe_workspace){room, too_few[i]};
        expect("too small a workspace", REFMOE_BAD_WORKSPACE, call(&how));
        expect("what it should be", 1, own.bytes == bytes && own.at == room);
    }
    expect("nothing was written", 1, is_untouched());
    expect("a workspace of the caller's", REFMOE_OK, call(&how));
    expect("no other memory", 1, taken_bytes == 0 && !is_untouched());
    free(room);
}

static void check_long_sum(void)
{
    refmoe_workspace own = {NULL, -1};
    const refmoe_how how = HOW(0, 2, REFMOE_EXACT, REFMOE_FLOAT32, 0, .workspace = &own);
    expect("too long a sum", REFMOE_NO_MEMORY,
           refmoe_grouped_matmul_f32(&how, E, N, M, INT64_C(1) << 50, good_offsets, x, w, NULL, NULL, out, NULL));
}

/* Whether the kernel computes experts with few rows in one call. */
static int check_asking(int kernel, int profile)
{
    asking *const calls_of_all[] = {forward, back_to_x, back_to_w, few_rows};
    const refmoe_how how = HOW(kernel, 1, profile, REFMOE_FLOAT32, 0);
    int has_few = few_rows(&how) != REFMOE_MANY_ROWS;
    for (int i = 0; i < 3 + has_few; i++) {
        check_memory(calls_of_all[i], kernel, profile);
        check_own_workspace(calls_of_all[i], kernel, profile);
    }
    return has_few;
}

/* ---- scratch memory where much of it is used: the header's bound holds, and is not idle ---- */

enum { MANY = 512, SOME = 64, LONG = 504 }; /* LONG: whole tiles of every kernel */

static void check_workspace(int kernel, int profile)
{
    static float a[MANY * LONG], b[SOME * MANY], c[MANY * SOME], d[LONG * SOME];
    const int64_t offsets[2] = {0, MANY};
    const refmoe_how how = HOW(kernel, 1, profile, REFMOE_FLOAT32, 0);
    taken_bytes = 0;
    expect("a product of many rows", REFMOE_OK,
           refmoe_grouped_matmul_f32(&how, 1, MANY, SOME, LONG, offsets, a, b, NULL, NULL, c, NULL));
    expect("workspace within its bound", 1, taken_bytes <= (5 << 19) + 288 * LONG);
    taken_bytes = 0;
    expect("a sum over many rows", REFMOE_OK,
           refmoe_grouped_matmul_backward_w_f32(&how, 1, MANY, LONG, SOME, offsets, a, b, NULL, d, NULL));
    expect("workspace back to the weights", 1, taken_bytes <= (5 << 19) + 288 * MANY);
    expect("a bound that is not idle", 1, taken_bytes > 2 << 20);
}

/* ---- a child made by fork after a parallel call ---- */

enum { ROWS = 64, SIDE = 64 };

static int multiply(float *to)
{
    static float a[ROWS * SIDE], b[SIDE * SIDE];
    const int64_t offsets[2] = {0, ROWS};
    const refmoe_how how = HOW(0, 2, REFMOE_CHAIN, REFMOE_FLOAT32, 0);
    for (int i = 0; i < ROWS * SIDE; i++)
        a[i] = (float)(i % 7) - 3, b[i] = (float)(i % 5) / 3;
    return refmoe_grouped_matmul_f32(&how, 1, ROWS, SIDE, SIDE, offsets, a, b, NULL, NULL, to, NULL);
}

static void check_fork(void)
{
    static float parent[ROWS * SIDE], child[ROWS * SIDE];
    int status = -1;
    expect("before the fork", REFMOE_OK, multiply(parent));
    fflush(stdout);
    pid_t made = fork();
    if (made == 0) {
        alarm(60);
        int wrong = multiply(child) != REFMOE_OK || memcmp(parent, child, sizeof parent) != 0;
        _exit(wrong);
    }
    expect("waiting for the child", 1, waitpid(made, &status, 0) == made);
    expect("the child's bits", 0, status);
    expect("the parent after the fork", REFMOE_OK, multiply(child));
    expect("the parent's bits", 0, memcmp(parent, child, sizeof parent));
}

int main(void)
{
    int count = (int)(sizeof calls / sizeof *calls), few = 0;
    for (int i = 0; i < count; i++)
        check_refusal(&calls[i]), expect(calls[i].name, 1, is_untouched());
    check_pairs();
    check_table();
    check_long_sum();
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++)
        for (int profile = REFMOE_EXACT; profile <= REFMOE_CHAIN && refmoe_kernel_runs_here(kernel); profile++) {
            check_workspace(kernel, profile);
            few += check_asking(kernel, profile);
        }
    check_fork();
    if (failures == 0)
        printf("ok   %d bad calls refused, the table's ends, memory refused and bounded, of few rows by %d, a forked "
               "child\n", count, few);
    return failures != 0;
}
