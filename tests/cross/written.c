/* written.c: norms, AdamW, attention and products of rows of this build against a file of operands and of the bits that
   NumPy made of them.

     written FILE     status 1 at the first differing bit

   The file (written by written.py) is a sequence of cases, little endian and dense, until it ends:

     char    name[32]                     NUL-padded
     int64   kind, size[4]                enum kind below; what it does not use is 0
     float   constants[8]
     float   the operands, then the results, of the sizes in `describe`

   Every kernel that runs here makes each call with 1 and 2 threads, and in a caller's hostile floating-point mode;
   results stand between guard words. Every NaN is one value. */

#include <stdint.h>
#include <string.h>

#include "environment.h"
#include "memory.h"
#include "refmoe_attention.h"
#include "refmoe_sums.h"
#include "refmoe_written.h"

#define DRIVER "written"
#include "reading.h"

enum kind { RMS_NORM, RMS_NORM_BACKWARD, ADAMW, ATTENTION, ATTENTION_BACKWARD, ROW_PRODUCTS, KINDS };
enum { OPERANDS = 4, RESULTS = 3, GUARD = 29 };

struct written_case {
    char name[32];
    int64_t kind, size[4];
    float constants[8];
    int operands, results;
    int64_t operand_count[OPERANDS], result_count[RESULTS];
    float *operand[OPERANDS], *want[RESULTS];
};

static void take(int64_t *count, int *number, int64_t numbers) { count[(*number)++] = numbers; }

/* The sizes of a case's arrays, in the order of the manuals; of adamw p, m and v are operands and results. */
static void describe(struct written_case *c)
{
    const int64_t n = c->size[0], m = c->size[1], heads = c->size[2], width = c->size[3];
    c->operands = c->results = 0;
    if (c->kind == RMS_NORM || c->kind == RMS_NORM_BACKWARD) {
        int back = c->kind == RMS_NORM_BACKWARD;
        take(c->operand_count, &c->operands, n * m);
        if (back)
            take(c->operand_count, &c->operands, n * m), take(c->operand_count, &c->operands, n);
        else
            take(c->result_count, &c->results, n);
        take(c->operand_count, &c->operands, m);
        take(c->result_count, &c->results, n * m);
        take(c->result_count, &c->results, n * m);
    } else if (c->kind == ADAMW) {
        for (int i = 0; i < OPERANDS; i++)
            take(c->operand_count, &c->operands, n);
        for (int i = 0; i < RESULTS; i++)
            take(c->result_count, &c->results, n);
    } else if (c->kind == ROW_PRODUCTS) {
        take(c->operand_count, &c->operands, n * m), take(c->operand_count, &c->operands, n * m);
        take(c->result_count, &c->results, n);
    } else {
        int64_t tokens = n * m * heads * width, weights = n * heads * m * m;
        take(c->operand_count, &c->operands, 3 * tokens);
        take(c->operand_count, &c->operands, c->kind == ATTENTION ? heads * m * m : weights);
        if (c->kind == ATTENTION)
            take(c->result_count, &c->results, weights), take(c->result_count, &c->results, tokens);
        else
            take(c->operand_count, &c->operands, tokens), take(c->result_count, &c->results, 3 * tokens);
    }
}

static int read_case(FILE *file, struct written_case *c)
{
    if (fread(c->name, 1, sizeof c->name, file) != sizeof c->name)
        return 0;
    int64_t *head = read_array(file, 5, sizeof *head);
    float *constants = read_array(file, 8, sizeof *constants);
    c->kind = head[0];
    memcpy(c->size, head + 1, sizeof c->size);
    memcpy(c->constants, constants, sizeof c->constants);
    free(head);
    free(constants);
    if (c->kind < 0 || c->kind >= KINDS)
        give_up("a kind that there is not");
    describe(c);
    for (int i = 0; i < c->operands; i++)
        c->operand[i] = read_array(file, c->operand_count[i], sizeof(float));
    for (int i = 0; i < c->results; i++)
        c->want[i] = read_array(file, c->result_count[i], sizeof(float));
    return 1;
}

static void forget(struct written_case *c)
{
    for (int i = 0; i < c->operands; i++)
        free(c->operand[i]);
    for (int i = 0; i < c->results; i++)
        free(c->want[i]);
}

/* ---- one call ---- */

static int attend(const struct written_case *c, const refmoe_how *how, float *const *out)
{
    const refmoe_heads heads = {c->size[0], c->size[1], c->size[2], c->size[3]};
    float *const *in = c->operand, *room = malloc((size_t)refmoe_attention_room(how, &heads) * sizeof *room);
    refmoe_open left_open = {0, 0, NULL};
    int status;
    if (!room)
        give_up("no memory");
    if (c->kind == ATTENTION)
        status = refmoe_attention(how, &heads, c->constants[0], in[0], in[1], out[0], out[1], room, &left_open);
    else
        status = refmoe_attention_backward(how, &heads, c->constants[0], in[0], in[1], in[2], out[0], room);
    free(room);
    return left_open.count ? -1 : status;
}

static int run_call(const struct written_case *c, const refmoe_how *how, float *const *out)
{
    const int64_t n = c->size[0], m = c->size[1];
    float *const *in = c->operand;
    const float *k = c->constants;
    if (c->kind == RMS_NORM)
        return refmoe_rms_norm(how, n, m, k[0], in[0], in[1], out[0], out[1], out[2]);
    if (c->kind == RMS_NORM_BACKWARD)
        return refmoe_rms_norm_backward(how, n, m, in[0], in[1], in[2], in[3], out[0], out[1]);
    if (c->kind == ROW_PRODUCTS)
        return refmoe_row_products(how, n, m, in[0], in[1], out[0]);
    if (c->kind != ADAMW)
        return attend(c, how, out);
    const refmoe_adamw_constants constants = {k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]};
    for (int i = 0; i < RESULTS; i++)
        memcpy(out[i], in[i + 1], (size_t)n * sizeof **out);
    return refmoe_adamw(how, &constants, n, in[0], out[0], out[1], out[2]);
}

static int is_same(uint32_t got, uint32_t want)
{
    const uint32_t size = UINT32_MAX >> 1, infinity = 0x7F800000;
    return got == want || ((got & size) > infinity && (want & size) > infinity);
}

static void compare(const struct written_case *c, const refmoe_how *how, int hostile, int result, const uint32_t *room,
                    int status)
{
    for (int64_t i = -GUARD; i < c->result_count[result] + GUARD; i++) {
        uint32_t want = UINT32_MAX, got = room[GUARD + i];
        int is_guard = i < 0 || i >= c->result_count[result];
        if (!is_guard)
            memcpy(&want, c->want[result] + i, sizeof want);
        if (status == REFMOE_OK && (is_guard ? got == want : is_same(got, want)))
            continue;
        printf("FAIL written / %s: kernel %s, %d thread(s)%s: status %d, result %d, number %lld: expected 0x%x, "
               "got 0x%x\n",
               c->name, refmoe_kernel_name(how->kernel), (int)how->threads, hostile ? ", hostile mode" : "", status,
               result, (long long)i, (unsigned)want, (unsigned)got);
        exit(1);
    }
}

static void check_call(const struct written_case *c, refmoe_how how, int hostile)
{
    uint32_t *room[RESULTS];
    float *out[RESULTS];
    for (int i = 0; i < c->results; i++) {
        size_t bytes = (size_t)(c->result_count[i] + 2 * GUARD) * sizeof **room;
        room[i] = malloc(bytes);
        if (!room[i])
            give_up("no memory");
        memset(room[i], 0xFF, bytes);
        out[i] = (float *)(void *)(room[i] + GUARD);
    }
    environment found = enter_environment();
    if (hostile)
        leave_environment(HOSTILE);
    int status = run_call(c, &how, out);
    leave_environment(found);
    for (int i = 0; i < c->results; i++) {
        compare(c, &how, hostile, i, room[i], status);
        free(room[i]);
    }
}

static void check_case(const struct written_case *c)
{
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++)
        if (refmoe_kernel_runs_here(kernel)) {
            refmoe_how how = {.kernel = kernel};
            for (how.threads = 1; how.threads <= 2; how.threads++)
                check_call(c, how, 0);
            check_call(c, how, 1);
        }
}

static int next_case(FILE *file)
{
    struct written_case c;
    if (!read_case(file, &c))
        return 0;
    check_case(&c);
    forget(&c);
    return 1;
}

int main(int count, char **argument) { return replay_file(count, argument, next_case); }
