/* formulas.c: the public functions of refmoe_formulas.h: check, share out the elements, note what is left open. */

#include "formulas.h"
#include "share_out.h"

/* ---- instruction sets ---- */

static const struct formulas *const table[] = {
    &refmoe_formulas_portable,
#if defined(__x86_64__)
    &refmoe_formulas_avx2,
    &refmoe_formulas_avx512,
#endif
#if defined(__aarch64__)
    &refmoe_formulas_neon,
#endif
};

const struct formulas *refmoe_formulas(int kernel)
{
    const struct kernel *found = refmoe_kernel(kernel);
    for (size_t i = 0; found && i < sizeof table / sizeof *table; i++)
        if (strcmp(table[i]->kernel, found->name) == 0)
            return table[i];
    return NULL;
}

/* ---- checks ---- */

static int check_how(const refmoe_how *how)
{
    if (!refmoe_formulas(how->kernel))
        return REFMOE_BAD_KERNEL;
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    return how->format < REFMOE_FLOAT32 || how->format > REFMOE_FP16 ? REFMOE_BAD_FORMAT : REFMOE_OK;
}

static int is_between(double low, double x, double high) { return x >= low && x <= high; }

static int is_cap(double cap) { return cap == 0 || is_between(0x1p-20, cap, 0x1p20); }

static int caps_are_proven(const refmoe_activation *act)
{
    if (act->cap == 0 && act->up_cap == 0)
        return act->name != REFMOE_SOFTCAP;
    if (act->alpha != 0 && !is_between(0x1p-100, magnitude(act->alpha), 0x1p100))
        return 0;
    if (act->name == REFMOE_SOFTCAP)
        return act->cap != 0 && is_cap(act->cap) && act->up_cap == 0;
    return act->name == REFMOE_SILU && is_cap(act->cap) && is_cap(act->up_cap);
}

/* What the bounds of formulas_template.h are proven for; a NaN is never between. */
static int is_proven(const refmoe_activation *act)
{
    double offset = magnitude(act->offset);
    int limited = is_finite(act->limit);
    if (act->name < REFMOE_SILU || act->name > REFMOE_SOFTCAP || !caps_are_proven(act))
        return 0;
    if (!is_between(0, magnitude(act->alpha), 0x1p100))
        return 0;
    if (!is_between(0x1p-40, act->limit, limited ? 0x1p100 : act->limit))
        return 0;
    if (offset != 0 && !is_between(0x1p-60, offset, 0x1p100))
        return 0;
    if (act->name != REFMOE_RELU && act->name != REFMOE_RELU2)
        return act->name == REFMOE_SILU || act->name == REFMOE_SOFTCAP || act->alpha == 1;
    return act->alpha == 1 && offset == 0 && (!limited || (double)(float)act->limit == act->limit);
}

static int is_general(const refmoe_activation *act)
{
    return act->alpha != 1 || act->offset != 0 || is_finite(act->limit);
}

static int row_of(const refmoe_activation *act)
{
    return act->name == REFMOE_SILU && (act->cap > 0 || act->up_cap > 0) ? CAPPED_SILU : act->name;
}

static int is_missing(const void *array, int64_t size) { return size > 0 && !array; }

static int is_bad_list(const refmoe_open *open)
{
    return !open || open->room < 0 || is_missing(open->index, open->room);
}

static int is_bad_size(int64_t n) { return n < 0 || n >= INT64_C(1) << 60; }

/* ---- sharing out the elements ---- */

enum { RUN = 4096 }; /* elements that a thread takes at a time; whole vectors of every instruction set */

/* A formula with what it is called for. */
struct task {
    formula_function *function;
    const struct formula_call *call;
};

static void run_range(const void *task, int64_t begin, int64_t end, int thread)
{
    const struct task *t = task;
    (void)thread;
    t->function(t->call, begin, end);
}

/* `at_once`: elements, or rows, that a thread takes at a time. */
static int run(formula_function *function, const struct formula_call *call, int64_t size, int64_t at_once, int threads)
{
    struct task task = {function, call};
    for (int i = 0; i < MAX_RESULTS && call->open[i]; i++)
        call->open[i]->count = 0;
    share_out(run_range, &task, size, at_once, threads);
    return REFMOE_OK;
}

static struct formula_call describe(const refmoe_how *how)
{
    return (struct formula_call){.format = &refmoe_formats[how->format], .narrow = how->format != REFMOE_FLOAT32};
}

/* ---- the formulas ---- */

formula_function *refmoe_gated_function(const refmoe_how *how, const refmoe_activation *act, struct formula_call *call)
{
    const struct formulas *formulas = refmoe_formulas(how->kernel);
    if (!formulas || !is_proven(act))
        return NULL;
    *call = describe(how);
    call->act = *act;
    return formulas->gated[row_of(act)][is_general(act)];
}

formula_function *refmoe_scaled_function(const refmoe_how *how, struct formula_call *call)
{
    *call = describe(how);
    return refmoe_formulas(how->kernel)->scaled_rows;
}

int refmoe_gated(const refmoe_how *how, const refmoe_activation *act, int64_t n, const float *gate, const float *up,
                 float *out, refmoe_open *open)
{
    int status = check_how(how);
    if (status)
        return status;
    if (!is_proven(act))
        return REFMOE_BAD_PROFILE;
    if (is_bad_size(n))
        return REFMOE_BAD_SIZE;
    if (is_missing(gate, n) || is_missing(out, n) || is_bad_list(open))
        return REFMOE_BAD_POINTER;
    struct formula_call call;
    formula_function *gated = refmoe_gated_function(how, act, &call);
    call.in[0] = gate, call.in[1] = up, call.out[0] = out, call.open[0] = open;
    return run(gated, &call, n, RUN, how->threads);
}

int refmoe_gated_backward(const refmoe_how *how, const refmoe_activation *act, int64_t n, const float *d_hidden,
                          const float *gate, const float *up, float *d_gate, float *d_up, refmoe_open *open_gate,
                          refmoe_open *open_up)
{
    int status = check_how(how);
    if (status)
        return status;
    if (!is_proven(act))
        return REFMOE_BAD_PROFILE;
    if (is_bad_size(n))
        return REFMOE_BAD_SIZE;
    if (is_missing(d_hidden, n) || is_missing(gate, n) || is_missing(d_gate, n) || is_bad_list(open_gate)
        || !up != !d_up || (up && is_bad_list(open_up)))
        return REFMOE_BAD_POINTER;
    struct formula_call call = describe(how);
    call.act = *act;
    call.in[0] = d_hidden, call.in[1] = gate, call.in[2] = up;
    call.out[0] = d_gate, call.out[1] = d_up, call.open[0] = open_gate, call.open[1] = up ? open_up : NULL;
    formula_function *backward = refmoe_formulas(how->kernel)->gated_backward[row_of(act)][is_general(act)];
    return run(backward, &call, n, RUN, how->threads);
}

int refmoe_scaled_rows(const refmoe_how *how, int64_t n, int64_t m, const float *w, const float *x, float *out,
                       refmoe_open *open)
{
    int64_t size;
    int status = check_how(how);
    if (status)
        return status;
    if (is_bad_size(n) || is_bad_size(m) || __builtin_mul_overflow(n, m, &size) || is_bad_size(size))
        return REFMOE_BAD_SIZE;
    if (is_missing(w, n) || is_missing(x, size) || is_missing(out, size) || is_bad_list(open))
        return REFMOE_BAD_POINTER;
    struct formula_call call;
    formula_function *scaled = refmoe_scaled_function(how, &call);
    call.length = m;
    call.in[0] = w, call.in[1] = x, call.out[0] = out, call.open[0] = open;
    return run(scaled, &call, size, RUN, how->threads);
}

/* ---- rows ---- */

static int check_rows(const refmoe_how *how, double c, int64_t n, int64_t m, const float *z, const float *out,
                      const refmoe_open *open)
{
    int status = check_how(how);
    if (status)
        return status;
    if (is_bad_size(n) || is_bad_size(m) || n > INT64_C(1) << 48)
        return REFMOE_BAD_SIZE;
    if (!is_between(0x1p-100, c, 0x1p100) || m < 1 || m > REFMOE_LONGEST_ROW)
        return REFMOE_BAD_PROFILE;
    return is_missing(z, n) || is_missing(out, n) || is_bad_list(open) ? REFMOE_BAD_POINTER : REFMOE_OK;
}

static struct formula_call describe_rows(const refmoe_how *how, double c, int64_t m, float *out, refmoe_open *open)
{
    struct formula_call call = describe(how);
    call.length = m, call.factor = c, call.out[0] = out, call.open[0] = open;
    return call;
}

static int64_t rows_at_once(int64_t m) { return m < RUN ? RUN / m : 1; }

int refmoe_softmax(const refmoe_how *how, double c, int64_t n, int64_t m, const float *z, const uint8_t *used,
                   float *out, refmoe_open *open)
{
    int status = check_rows(how, c, n, m, z, out, open);
    if (status)
        return status;
    struct formula_call call = describe_rows(how, c, m, out, open);
    call.in[0] = z, call.used = used;
    return run(refmoe_formulas(how->kernel)->softmax, &call, n, rows_at_once(m), how->threads);
}

int refmoe_softmax_backward(const refmoe_how *how, double c, int64_t n, int64_t m, const float *d, const float *z,
                            const uint8_t *used, float *out, refmoe_open *open)
{
    int status = check_rows(how, c, n, m, z, out, open);
    if (status)
        return status;
    if (is_missing(d, n))
        return REFMOE_BAD_POINTER;
    struct formula_call call = describe_rows(how, c, m, out, open);
    call.in[0] = d, call.in[1] = z, call.used = used;
    return run(refmoe_formulas(how->kernel)->softmax_backward, &call, n, rows_at_once(m), how->threads);
}

int refmoe_log_sum_exp(const refmoe_how *how, int64_t n, int64_t m, const float *z, float *out, refmoe_open *open)
{
    int status = check_rows(how, 1, n, m, z, out, open);
    if (status)
        return status;
    struct formula_call call = describe_rows(how, 1, m, out, open);
    call.in[0] = z;
    return run(refmoe_formulas(how->kernel)->log_sum_exp, &call, n, rows_at_once(m), how->threads);
}
