/* formulas.c: the activations of this build against a file of operands and of the bits that NumPy made of them.

     formulas FILE     status 1 at the first differing bit

   The file (written by formulas.py) is a sequence of cases, little endian and dense, until it ends:

     char    name[32]                     NUL-padded
     int64   format, activation, n, ups   as in refmoe_formulas.h; ups is n, or 0 for an activation alone
     double  alpha, limit, offset, cap, up_cap
     float   d[n], x[n], u[ups]           operands
     float   value[n], d_x[n], d_u[ups]   results

   Every kernel that runs here makes both calls with 1 and 2 threads and in a caller's hostile floating-point mode; what
   it decides must be right, it may leave an eighth open, and outputs stand between guard words. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "environment.h"
#include "memory.h"
#include "refmoe_formulas.h"

#define DRIVER "formulas"
#include "reading.h"

enum { GUARD = 29, RESULTS = 3 };

struct activation_case {
    char name[32];
    int64_t format, n, ups;
    refmoe_activation act;
    float *d, *x, *u, *want[RESULTS];
};

static int read_case(FILE *file, struct activation_case *c)
{
    if (fread(c->name, 1, sizeof c->name, file) != sizeof c->name)
        return 0;
    int64_t *size = read_array(file, 4, sizeof *size);
    double *number = read_array(file, 5, sizeof *number);
    c->format = size[0], c->n = size[2], c->ups = size[3];
    c->act = (refmoe_activation){(int32_t)size[1], number[0], number[1], number[2], number[3], number[4]};
    free(size);
    free(number);
    c->d = read_array(file, c->n, sizeof *c->d);
    c->x = read_array(file, c->n, sizeof *c->x);
    c->u = read_array(file, c->ups, sizeof *c->u);
    for (int i = 0; i < RESULTS; i++)
        c->want[i] = read_array(file, i < 2 ? c->n : c->ups, sizeof *c->want[i]);
    return 1;
}

static void forget(struct activation_case *c)
{
    void *room[] = {c->d, c->x, c->u, c->want[0], c->want[1], c->want[2]};
    for (size_t i = 0; i < sizeof room / sizeof *room; i++)
        free(room[i]);
}

/* An output between guard words, and the list of what is left open of it. */
struct output {
    uint32_t *room;
    float *numbers;
    refmoe_open open;
};

static struct output prepare(int64_t n)
{
    struct output o = {.room = malloc((size_t)(n + 2 * GUARD) * sizeof *o.room)};
    o.open = (refmoe_open){0, n, malloc((size_t)n * sizeof *o.open.index)};
    if (!o.room || !o.open.index)
        give_up("no memory");
    memset(o.room, 0xFF, (size_t)(n + 2 * GUARD) * sizeof *o.room);
    o.numbers = (float *)(o.room + GUARD);
    return o;
}

static int is_open(const refmoe_open *open, int64_t at)
{
    for (int64_t i = 0; i < open->count; i++)
        if (open->index[i] == at)
            return 1;
    return 0;
}

/* result 0 is the value, 1 and 2 are the gradients. */
static void check_output(const struct activation_case *c, struct output *o, int result, const refmoe_how *how,
                         int status)
{
    int failed = status != REFMOE_OK || o->open.count > c->n / 8;
    int64_t at = failed ? -1 : -GUARD;
    for (; !failed && at < c->n + GUARD; at++) {
        uint32_t want = UINT32_MAX;
        if (at >= 0 && at < c->n)
            memcpy(&want, c->want[result] + at, sizeof want);
        if (o->room[GUARD + at] != want && (at < 0 || at >= c->n || !is_open(&o->open, at))) {
            failed = 1;
            break;
        }
    }
    if (failed) {
        printf("FAIL formulas / %s%s: kernel %s, %d thread(s), result %d: status %d, number %lld, %lld left open\n",
               c->name, result ? " backward" : "", refmoe_kernel_name(how->kernel), (int)how->threads, result, status,
               (long long)at, (long long)o->open.count);
        exit(1);
    }
    free(o->room);
    free(o->open.index);
}

static void check_calls(const struct activation_case *c, refmoe_how how, int hostile)
{
    const float *u = c->ups ? c->u : NULL;
    struct output value = prepare(c->n), d_x = prepare(c->n), d_u = prepare(c->n);
    environment found = enter_environment();
    if (hostile)
        leave_environment(HOSTILE);
    int there = refmoe_gated(&how, &c->act, c->n, c->x, u, value.numbers, &value.open);
    int back = refmoe_gated_backward(&how, &c->act, c->n, c->d, c->x, u, d_x.numbers, u ? d_u.numbers : NULL, &d_x.open,
                                     &d_u.open);
    leave_environment(found);
    if (taken_bytes > 0)
        give_up("a formula took memory");
    check_output(c, &value, 0, &how, there);
    check_output(c, &d_x, 1, &how, back);
    if (u)
        check_output(c, &d_u, 2, &how, back);
    else {
        free(d_u.room);
        free(d_u.open.index);
    }
}

static void check_case(const struct activation_case *c)
{
    for (int kernel = 0; kernel < refmoe_kernel_count(); kernel++)
        if (refmoe_kernel_runs_here(kernel)) {
            refmoe_how how = {.kernel = kernel, .format = (int32_t)c->format};
            for (how.threads = 1; how.threads <= 2; how.threads++)
                check_calls(c, how, 0);
            check_calls(c, how, 1);
        }
}

static int next_case(FILE *file)
{
    struct activation_case c;
    if (!read_case(file, &c))
        return 0;
    check_case(&c);
    forget(&c);
    return 2; /* there and back */
}

int main(int count, char **argument) { return replay_file(count, argument, next_case); }
