/* sums.c: the exact sums of this build against a file of operands and of the bits that NumPy made of them.

     sums FILE     status 1 at the first differing bit

   The file (written by sums.py) is a sequence of cases, little endian and dense, until it ends:

     char    name[32]                     NUL-padded
     int64   format, n, m, terms, rows    format as in refmoe_kernels.h
     int64   index[n][terms]              rows of a and b, or -1
     float   a[rows][m], b[rows][m], weights[n][terms], more[n][m]
     float   the outputs (n, m) of the three calls below

   Every kernel that runs here makes each call with 1 and 2 threads, in a caller's hostile floating-point mode, and with
   its tiers forced; outputs stand between guard words.                                                              */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "environment.h"
#include "memory.h"
#include "refmoe_sums.h"

#define DRIVER "sums"
#include "reading.h"

enum { CALLS = 3, MAX_TERMS = 64, GUARD = 29 };

struct sums_case {
    char name[32];
    int64_t format, n, m, terms, rows;
    int64_t *index;
    float *a, *b, *weights, *more, *want[CALLS];
};

static int read_case(FILE *file, struct sums_case *c)
{
    if (fread(c->name, 1, sizeof c->name, file) != sizeof c->name)
        return 0;
    int64_t *size = read_array(file, 5, sizeof *size);
    c->format = size[0], c->n = size[1], c->m = size[2], c->terms = size[3], c->rows = size[4];
    free(size);
    c->index = read_array(file, c->n * c->terms, sizeof *c->index);
    c->a = read_array(file, c->rows * c->m, sizeof *c->a);
    c->b = read_array(file, c->rows * c->m, sizeof *c->b);
    c->weights = read_array(file, c->n * c->terms, sizeof *c->weights);
    c->more = read_array(file, c->n * c->m, sizeof *c->more);
    for (int call = 0; call < CALLS; call++)
        c->want[call] = read_array(file, c->n * c->m, sizeof *c->want[call]);
    if (c->terms > MAX_TERMS)
        give_up("more terms than MAX_TERMS");
    return 1;
}

static void forget(struct sums_case *c)
{
    void *room[] = {c->index, c->a, c->b, c->weights, c->more, c->want[0], c->want[1], c->want[2]};
    for (size_t i = 0; i < sizeof room / sizeof *room; i++)
        free(room[i]);
}

/* sum_q a[index], sum_q weights a[index] + more, sum_q a[index] b[index]: how many terms. */
static int64_t describe(const struct sums_case *c, int call, refmoe_term *term)
{
    memset(term, 0, (MAX_TERMS + 1) * sizeof *term);
    for (int64_t q = 0; q < c->terms; q++) {
        const refmoe_view gathered = {c->a, c->m, 1, c->index + q, c->terms, c->rows};
        term[q].a = term[q].b = gathered;
        term[q].b.array = call == 2 ? c->b : NULL;
        if (call == 1)
            term[q].b = (refmoe_view){c->weights + q, c->terms, 0, NULL, 0, 0};
    }
    if (call != 1)
        return c->terms;
    term[c->terms].a = (refmoe_view){c->more, c->m, 1, NULL, 0, 0};
    return c->terms + 1;
}

static void check_call(const struct sums_case *c, int call, refmoe_how how, int hostile)
{
    refmoe_term term[MAX_TERMS + 1];
    int64_t terms = describe(c, call, term), count = c->n * c->m;
    uint32_t *room = malloc((size_t)(count + 2 * GUARD) * sizeof *room), *out = room + GUARD;
    if (!room)
        give_up("no memory");
    memset(room, 0xFF, (size_t)(count + 2 * GUARD) * sizeof *room);
    environment found = enter_environment();
    if (hostile)
        leave_environment(HOSTILE);
    int status = refmoe_sum_f32(&how, c->n, c->m, terms, term, (float *)out);
    leave_environment(found);
    if (taken_bytes > 0)
        give_up("few terms took memory");
    for (int64_t i = -GUARD; i < count + GUARD; i++) {
        uint32_t want = UINT32_MAX;
        if (i >= 0 && i < count)
            memcpy(&want, c->want[call] + i, sizeof want);
        if (status == REFMOE_OK && out[i] == want)
            continue;
        printf("FAIL sums / %s: kernel %s, %d thread(s), forced tier %d%s, call %d: status %d, number %lld: "
               "expected 0x%x, got 0x%x\n", c->name, refmoe_kernel_name(how.kernel), (int)how.threads, (int)how.force,
               hostile ? ", hostile mode" : "", call, status, (long long)i, (unsigned)want, (unsigned)out[i]);
        exit(1);
    }
    free(room);
}

static void check_case(const struct sums_case *c)
{
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++)
        for (int call = 0; call < CALLS && refmoe_kernel_runs_here(kernel); call++) {
            refmoe_how how = {.kernel = kernel, .format = (int32_t)c->format};
            for (how.threads = 1; how.threads <= 2; how.threads++)
                check_call(c, call, how, 0);
            check_call(c, call, how, 1);
            for (how.force = REFMOE_FORCE_COMPENSATED; how.force <= REFMOE_FORCE_EXACT; how.force++)
                check_call(c, call, how, 0);
        }
}

static int next_case(FILE *file)
{
    struct sums_case c;
    if (!read_case(file, &c))
        return 0;
    check_case(&c);
    forget(&c);
    return 1;
}

int main(int count, char **argument) { return replay_file(count, argument, next_case); }
