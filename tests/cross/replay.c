/* replay.c: the kernels of this build against a file of operands and of the bits that NumPy made of them.

     replay          lists the kernels and their tiles
     replay FILE     calls all three products on every case of the file; status 1 at the first differing bit

   The file (written by replay.py) is a sequence of cases, little endian and dense, until it ends:

     char    group[32], name[32]          NUL-padded; the cases of a group are neighbours
     int32   profile, format, left_format, right_format     as in refmoe_kernels.h
     int64   E, N, M, K, M2               M2 is the second pair's M
     int64   offsets[E + 1]
     int64   scale_format, block_rows, block_cols, tensor      where right_format is of 8 bits or less, else nothing
     left    x (N, K), d (N, M), d2 (N, M2)
     right   w (E, M, K), w2 (E, M2, K), x_right (N, K)      x_right: the second operand of backward_w
     item    bias (E, M), acc_rows (N, M), acc_x (N, K), acc_w (E, M, K)
     byte    scales of w, scales of w2, tensor scales of w, of w2 (E float each; none where tensor is 0): likewise
     item    the outputs of the seven calls below, in their order; of weights of few bits, which are codes, of five

   where item is double for the profile REFMOE_UNFUSED and float for the others, and left and right are as their formats
   say. Every kernel that runs here makes each
   call with 1 and 2 threads (1 without OpenMP), then in a caller's hostile floating-point mode and in a workspace of
   the caller's between guard words, then, if exact, with its tiers forced. Outputs stand between guard words; operands
   are compared afterwards; scratch memory is held against the bound that the header gives. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "environment.h"
#include "memory.h"
#include "refmoe_kernels.h"

/* Flush subnormals and round upwards; the bits of the mode without the sticky flags. */
#if defined(__SSE2__)
enum { HOSTILE = 0xDFC0, MODE = 0xFFC0 };
#else
enum { HOSTILE = 1 << 24 | 1 << 22, MODE = 0x03C00000 };
#endif

struct head {
    char group[32], name[32];
    int32_t profile, format, left_format, right_format;
    int64_t e, n, m, k, m2;
};

_Static_assert(sizeof(struct head) == 120, "the head has no holes");

enum { X, D, D2, W, W2, X_RIGHT, BIAS, ACC_ROWS, ACC_X, ACC_W, SCALES, SCALES2, TENSOR, TENSOR2, OPERANDS };
enum { CALLS = 7, GUARD = 29 };

struct array {
    int64_t count, item;
    void *room, *data, *kept; /* data stands one item into its room, so that nothing is aligned by luck */
};

struct replay {
    struct head head;
    int64_t item;
    int calls;
    struct array offsets, operand[OPERANDS], want[CALLS];
    refmoe_scaled scaled[2]; /* w and w2, where they are codes with scales */
};

static const char *const call_name[CALLS] = {
    "grouped_matmul", "grouped_matmul with bias", "grouped_matmul with bias and acc", "grouped_matmul_backward_x",
    "grouped_matmul_backward_x of two pairs with acc", "grouped_matmul_backward_w",
    "grouped_matmul_backward_w with acc"};

/* ---- the calls ---- */

#define DEFINE_CALL(name, type, suffix, ...)                                                                          \
    static int name(const struct replay *r, int call, const refmoe_how *how, type *out, refmoe_report *report)        \
    {                                                                                                                 \
        int64_t e = r->head.e, n = r->head.n, m = r->head.m, k = r->head.k;                                           \
        const int64_t *offsets = r->offsets.data;                                                                     \
        const void *operand[OPERANDS];                                                                                \
        for (int i = 0; i < OPERANDS; i++)                                                                            \
            operand[i] = r->operand[i].data;                                                                          \
        if (r->calls < CALLS)                                                                                         \
            operand[W] = &r->scaled[0], operand[W2] = &r->scaled[1];                                                  \
        const void *x = operand[X], *w = operand[W], *d = operand[D];                                                 \
        const type *bias = call < 1 ? NULL : operand[BIAS];                                                           \
        const type *acc_rows = call < 2 ? NULL : operand[ACC_ROWS], *acc_x = call < 4 ? NULL : operand[ACC_X];        \
        const type *acc_w = call < 6 ? NULL : operand[ACC_W];                                                         \
        const refmoe_pair_##suffix pair[2] = {{d, w, m}, {operand[D2], operand[W2], r->head.m2}};                     \
        (void)report;                                                                                                 \
        if (call < 3)                                                                                                 \
            return refmoe_grouped_matmul_##suffix(how, e, n, m, k, offsets, x, w, bias, acc_rows, out __VA_ARGS__);   \
        if (call < 5)                                                                                                 \
            return refmoe_grouped_matmul_backward_x_##suffix(how, e, n, k, offsets, call - 2, pair, acc_x,            \
                                                             out __VA_ARGS__);                                        \
        return refmoe_grouped_matmul_backward_w_##suffix(how, e, n, m, k, offsets, d, operand[X_RIGHT], acc_w,        \
                                                         out __VA_ARGS__);                                            \
    }

DEFINE_CALL(call_f32, float, f32, , report)
DEFINE_CALL(call_f64, double, f64)

/* ---- one call, compared ---- */

struct way {
    refmoe_how how;
    int hostile; /* in the caller's mode, and in the caller's workspace */
};

static void fail(const struct replay *r, int call, const struct way *way, const char *what)
{
    printf("FAIL %s / %s: kernel %s, %d thread(s), forced tier %d%s, %s: %s\n", r->head.group, r->head.name,
           refmoe_kernel_name(way->how.kernel), (int)way->how.threads, (int)way->how.force,
           way->hostile ? ", hostile mode" : "", call_name[call], what);
    exit(1);
}

static unsigned long long bits_at(const void *array, int64_t item, int64_t index)
{
    uint64_t bits = 0;
    memcpy(&bits, (const char *)array + index * item, (size_t)item);
    return bits;
}

static void compare(const struct replay *r, int call, const struct way *way, const char *got)
{
    char what[120];
    for (int64_t i = -GUARD; i < r->want[call].count + GUARD; i++) {
        int inside = i >= 0 && i < r->want[call].count;
        uint64_t filled = UINT64_MAX >> (r->item == 4 ? 32 : 0);
        unsigned long long want = inside ? bits_at(r->want[call].data, r->item, i) : filled;
        if (bits_at(got, r->item, i) != want) {
            snprintf(what, sizeof what, "number %lld%s: expected 0x%llx, got 0x%llx", (long long)i,
                     inside ? "" : " (outside the output)", want, bits_at(got, r->item, i));
            fail(r, call, way, what);
        }
    }
}

static void compare_tiers(const struct replay *r, int call, const struct way *way, const refmoe_report *t)
{
    int64_t decided = t->rounding_test + t->grid + t->compensated + t->exact;
    if (decided != (r->head.profile == REFMOE_EXACT ? r->want[call].count : 0))
        fail(r, call, way, "the tiers do not add up to the outputs");
}

/* The header's bound: 2.5 MiB a thread, and 296 bytes for each term of the longest sum; and what the call reports. */
static void compare_workspace(const struct replay *r, int call, const struct way *way, const refmoe_report *report)
{
    const refmoe_workspace *own = way->how.workspace;
    const int64_t *offsets = r->offsets.data;
    int64_t longest = call < 3 ? r->head.k : call == 3 ? r->head.m : call == 4 ? r->head.m + r->head.m2 : 0;
    for (int64_t e = 0; e < r->head.e && call > 4; e++)
        if (offsets[e + 1] - offsets[e] > longest)
            longest = offsets[e + 1] - offsets[e];
    if (own && taken_bytes > 0)
        fail(r, call, way, "memory was taken beside the caller's workspace");
    taken_bytes = own ? own->bytes : taken_bytes;
    if (taken_bytes > way->how.threads * ((5 << 19) + 296 * longest))
        fail(r, call, way, "more scratch memory than the header allows");
    if (r->item == sizeof(float) && report->workspace_bytes != taken_bytes)
        fail(r, call, way, "another amount of scratch memory than reported");
    taken_bytes = 0;
}

static int run_call(const struct replay *r, int call, const struct way *way, void *out, refmoe_report *report)
{
    if (r->item == sizeof(float))
        return call_f32(r, call, &way->how, out, report);
    return call_f64(r, call, &way->how, out, report);
}

/* A workspace of exactly what the call asks for, full of ones, at an odd address between guard bytes. */
static char *lend_workspace(const struct replay *r, int call, const struct way *way, void *out)
{
    refmoe_workspace *own = way->how.workspace;
    *own = (refmoe_workspace){NULL, 0};
    refmoe_report report;
    if (run_call(r, call, way, out, &report) != REFMOE_OK || own->bytes <= 0)
        fail(r, call, way, "the workspace's size was not told");
    char *room = malloc((size_t)own->bytes + 2 * GUARD);
    if (!room)
        fail(r, call, way, "no memory");
    memset(room, 0xFF, (size_t)own->bytes + 2 * GUARD);
    own->at = room + GUARD;
    return room;
}

static void take_workspace_back(const struct replay *r, int call, const struct way *way, char *room)
{
    const refmoe_workspace *own = way->how.workspace;
    for (int64_t i = 0; i < GUARD; i++)
        if ((unsigned char)room[i] != 0xFF || (unsigned char)room[GUARD + own->bytes + i] != 0xFF)
            fail(r, call, way, "written beside the caller's workspace");
    free(room);
}

static void check_call(const struct replay *r, int call, const struct way *way)
{
    refmoe_report report = {0};
    size_t bytes = (size_t)((r->want[call].count + 2 * GUARD) * r->item);
    char *room = malloc(bytes), *out = room + GUARD * r->item;
    if (!room)
        fail(r, call, way, "no memory");
    memset(room, 0xFF, bytes); /* guard words, and NaN in the output */
    char *own = way->how.workspace ? lend_workspace(r, call, way, out) : NULL;
    environment found = enter_environment();
    if (way->hostile)
        leave_environment(HOSTILE);
    int status = run_call(r, call, way, out, &report);
    environment after = enter_environment();
    leave_environment(found);
    if (status != REFMOE_OK)
        fail(r, call, way, "a status other than REFMOE_OK");
    if (way->hostile && (after & MODE) != HOSTILE)
        fail(r, call, way, "the caller's floating-point mode was not put back");
    compare(r, call, way, out);
    compare_tiers(r, call, way, &report);
    compare_workspace(r, call, way, &report);
    if (own)
        take_workspace_back(r, call, way, own);
    free(room);
}

/* ---- one case ---- */

static int64_t check_calls(const struct replay *r, struct way way)
{
    for (int call = 0; call < r->calls; call++)
        check_call(r, call, &way);
    return r->calls;
}

static int64_t check_case(const struct replay *r)
{
    int64_t calls = 0;
    int most = refmoe_openmp() ? 2 : 1, exact = r->head.profile == REFMOE_EXACT;
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++) {
        if (!refmoe_kernel_runs_here(kernel))
            continue;
        refmoe_workspace own;
        struct way way = {.how = {.kernel = kernel, .profile = r->head.profile, .format = r->head.format,
                                  .left_format = r->head.left_format, .right_format = r->head.right_format}};
        for (way.how.threads = 1; way.how.threads <= most; way.how.threads++)
            calls += check_calls(r, way);
        way.how.threads = most, way.hostile = 1, way.how.workspace = &own;
        calls += check_calls(r, way);
        way.hostile = 0, way.how.workspace = NULL;
        for (way.how.force = REFMOE_FORCE_COMPENSATED; exact && way.how.force <= REFMOE_FORCE_EXACT; way.how.force++)
            calls += check_calls(r, way);
    }
    for (int i = 0; i < OPERANDS; i++)
        if (memcmp(r->operand[i].data, r->operand[i].kept, (size_t)(r->operand[i].count * r->operand[i].item)) != 0) {
            printf("FAIL %s / %s: operand %d was written to\n", r->head.group, r->head.name, i);
            exit(1);
        }
    return calls;
}

/* ---- reading ---- */

static void give_up(const char *what)
{
    fprintf(stderr, "replay: %s\n", what);
    exit(2);
}

static struct array read_array(FILE *file, int64_t count, int64_t item)
{
    size_t bytes = (size_t)(count * item);
    struct array a = {.count = count, .item = item, .room = malloc(bytes + (size_t)item), .kept = malloc(bytes + 1)};
    if (count < 0 || !a.room || !a.kept)
        give_up("an array that does not fit into memory");
    a.data = (char *)a.room + item;
    if (fread(a.data, 1, bytes, file) != bytes)
        give_up("the file ends within a case");
    memcpy(a.kept, a.data, bytes);
    return a;
}

static int64_t bytes_of(int format) { return format == REFMOE_FLOAT64 ? 8 : format == REFMOE_FLOAT32 ? 4 : 2; }

static int is_small(int format) { return format >= REFMOE_E5M2 && format <= REFMOE_INT4; }

static int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

/* Elements and bytes of one of every operand. */
static void sizes_of(const struct replay *r, const int64_t *scaling, int64_t *count, int64_t *item)
{
    int64_t e = r->head.e, n = r->head.n, m = r->head.m, k = r->head.k, m2 = r->head.m2;
    int right = r->head.right_format, small = is_small(right), four = right == REFMOE_E2M1 || right == REFMOE_INT4;
    const int64_t counts[SCALES] = {n * k,      n * m, n * m2, e * m * k, e * m2 * k, n * k,
                                    e * m, n * m, n * k,      e * m * k};
    for (int i = 0; i < SCALES; i++) {
        count[i] = counts[i];
        item[i] = i < W ? bytes_of(r->head.left_format) : i < BIAS ? bytes_of(right) : r->item;
    }
    if (!small)
        return;
    int64_t pitch = four ? parts(k, 2) : k, wide = scaling[0] == REFMOE_FLOAT32 ? 4 : 1;
    count[W] = e * m * pitch, count[W2] = e * m2 * pitch, item[W] = item[W2] = 1, count[X_RIGHT] = count[ACC_W] = 0;
    count[SCALES] = e * parts(m, scaling[1]) * parts(k, scaling[2]), item[SCALES] = wide;
    count[SCALES2] = e * parts(m2, scaling[1]) * parts(k, scaling[2]), item[SCALES2] = wide;
    count[TENSOR] = count[TENSOR2] = scaling[3] ? e : 0, item[TENSOR] = item[TENSOR2] = sizeof(float);
}

static void describe(struct replay *r, const int64_t *scaling)
{
    for (int i = 0; i < 2; i++)
        r->scaled[i] = (refmoe_scaled){r->operand[W + i].data,
                                       r->operand[SCALES + i].data,
                                       scaling[3] ? r->operand[TENSOR + i].data : NULL,
                                       scaling[1],
                                       scaling[2],
                                       (int32_t)scaling[0]};
}

static int read_case(FILE *file, struct replay *r)
{
    size_t got = fread(&r->head, 1, sizeof r->head, file);
    if (got != sizeof r->head && got != 0)
        give_up("the file ends within a case");
    if (got == 0)
        return 0;
    int64_t n = r->head.n, m = r->head.m, k = r->head.k, scaling[4] = {0, 1, 1, 0};
    int64_t count[OPERANDS] = {0}, item[OPERANDS] = {0};
    const int64_t want[CALLS] = {n * m, n * m, n * m, n * k, n * k, r->head.e * m * k, r->head.e * m * k};
    r->item = r->head.profile == REFMOE_UNFUSED ? sizeof(double) : sizeof(float);
    r->calls = is_small(r->head.right_format) ? 5 : CALLS;
    r->offsets = read_array(file, r->head.e + 1, sizeof(int64_t));
    if (r->calls < CALLS && fread(scaling, sizeof scaling, 1, file) != 1)
        give_up("the file ends within a case");
    sizes_of(r, scaling, count, item);
    for (int i = 0; i < OPERANDS; i++)
        r->operand[i] = read_array(file, count[i], item[i]);
    for (int i = 0; i < CALLS; i++)
        r->want[i] = read_array(file, i < r->calls ? want[i] : 0, r->item);
    describe(r, scaling);
    return 1;
}

static void forget(struct array a)
{
    free(a.room);
    free(a.kept);
}

static void forget_case(struct replay *r)
{
    forget(r->offsets);
    for (int i = 0; i < OPERANDS; i++)
        forget(r->operand[i]);
    for (int i = 0; i < CALLS; i++)
        forget(r->want[i]);
}

/* ---- the whole ---- */

static void list_kernels(void)
{
    printf("%s, OpenMP %d, pointers of %d bits\n", refmoe_compiler(), refmoe_openmp(), (int)(8 * sizeof(void *)));
    for (int i = 0; i < refmoe_kernel_count(); i++) {
        printf("kernel %s: tiles", refmoe_kernel_name(i));
        for (int p = REFMOE_EXACT; p <= REFMOE_UNFUSED; p++)
            printf(" %dx%d", refmoe_tile_rows(i, p), refmoe_tile_cols(i, p));
        if (refmoe_kernel_runs_here(i))
            printf("\n");
        else
            printf(", cannot run here: needs %s\n", refmoe_kernel_needs(i));
    }
}

static void close_group(const char *group, int64_t cases, int64_t calls)
{
    if (cases)
        printf("ok   %s: %lld cases, %lld calls\n", group, (long long)cases, (long long)calls);
    fflush(stdout);
}

int main(int count, char **argument)
{
    struct replay r;
    char group[32] = "";
    int64_t cases = 0, calls = 0, all = 0;
    list_kernels();
    if (count < 2)
        return 0;
    FILE *file = fopen(argument[1], "rb");
    if (!file)
        give_up("no such file");
    for (; read_case(file, &r); cases++, all++) {
        if (strncmp(group, r.head.group, sizeof group) != 0) {
            close_group(group, cases, calls);
            cases = calls = 0;
            memcpy(group, r.head.group, sizeof group);
            group[sizeof group - 1] = 0;
        }
        calls += check_case(&r);
        forget_case(&r);
    }
    close_group(group, cases, calls);
    fclose(file);
    if (all == 0)
        give_up("the file holds no case");
    printf("replayed %lld cases, every bit alike\n", (long long)all);
    return 0;
}
