/* written.c: refmoe_written.h: check, share out rows or elements, carry out what is written. */

#include <string.h>

#include "refmoe_written.h"
#include "share_out.h"

enum { ROWS = 8, COLUMNS = 512, RUN = 8192, MAX_ARRAYS = 6 };

/* One call: its arrays by position as in the manual. */
struct call {
    int64_t m; /* numbers of a row */
    float eps;
    const float *in[MAX_ARRAYS];
    float *out[MAX_ARRAYS];
    const refmoe_adamw_constants *constants;
};

/* ---- sums of up to ROWS rows at once ---- */

/* product[j] for columns at .. at + count of row i. */
typedef void product_function(const struct call *c, int64_t i, int64_t at, int64_t count, float *product);

static void add_columns(float (*product)[COLUMNS], int64_t count, float *sum)
{
    float s[ROWS];
    memcpy(s, sum, sizeof s);
    for (int64_t j = 0; j < count; j++)
        for (int r = 0; r < ROWS; r++)
            s[r] += product[r][j];
    memcpy(sum, s, sizeof s);
}

/* sum[r] of row first + r. Rows are independent, so that many chains go on at a time. */
static inline __attribute__((always_inline)) void sum_rows(product_function *make, const struct call *c, int64_t first,
                                                           int64_t rows, float *sum)
{
    float product[ROWS][COLUMNS];
    memset(sum, 0, ROWS * sizeof *sum);
    if (rows < ROWS)
        memset(product, 0, sizeof product);
    for (int64_t at = 0; at < c->m; at += COLUMNS) {
        int64_t count = c->m - at < COLUMNS ? c->m - at : COLUMNS;
        for (int64_t r = 0; r < rows; r++)
            make(c, first + r, at, count, product[r]);
        add_columns(product, count, sum);
    }
}

static int64_t rows_from(int64_t first, int64_t end) { return end - first < ROWS ? end - first : ROWS; }

/* ---- the norm ---- */

static void squares(const struct call *c, int64_t i, int64_t at, int64_t count, float *restrict product)
{
    const float *x = c->in[0] + i * c->m + at;
    for (int64_t j = 0; j < count; j++)
        product[j] = x[j] * x[j];
}

static void norm_row(const struct call *c, int64_t i, float rms)
{
    const float *x = c->in[0] + i * c->m, *w = c->in[1];
    float *restrict normed = c->out[1] + i * c->m, *restrict out = c->out[2] + i * c->m;
    c->out[0][i] = rms;
    for (int64_t j = 0; j < c->m; j++) {
        normed[j] = x[j] / rms;
        out[j] = normed[j] * w[j];
    }
}

static void norm_rows(const struct call *c, int64_t begin, int64_t end)
{
    float sum[ROWS];
    for (int64_t i = begin; i < end; i += ROWS) {
        sum_rows(squares, c, i, rows_from(i, end), sum);
        for (int64_t r = 0; r < rows_from(i, end); r++)
            norm_row(c, i + r, __builtin_sqrtf(sum[r] / (float)c->m + c->eps));
    }
}

static void scaled_products(const struct call *c, int64_t i, int64_t at, int64_t count, float *restrict product)
{
    const float *d = c->in[0] + i * c->m + at, *normed = c->in[1] + i * c->m + at, *w = c->in[3] + at;
    for (int64_t j = 0; j < count; j++)
        product[j] = d[j] * w[j] * normed[j];
}

static void norm_row_backward(const struct call *c, int64_t i, float along)
{
    const float *d = c->in[0] + i * c->m, *normed = c->in[1] + i * c->m, *w = c->in[3];
    float rms = c->in[2][i], *restrict d_x = c->out[0] + i * c->m, *restrict d_gain = c->out[1] + i * c->m;
    for (int64_t j = 0; j < c->m; j++) {
        d_x[j] = (d[j] * w[j] - normed[j] * along) / rms;
        d_gain[j] = d[j] * normed[j];
    }
}

static void norm_rows_backward(const struct call *c, int64_t begin, int64_t end)
{
    float sum[ROWS];
    for (int64_t i = begin; i < end; i += ROWS) {
        sum_rows(scaled_products, c, i, rows_from(i, end), sum);
        for (int64_t r = 0; r < rows_from(i, end); r++)
            norm_row_backward(c, i + r, sum[r] / (float)c->m);
    }
}

/* ---- element by element ---- */

static void adamw(const struct call *c, int64_t begin, int64_t end)
{
    const refmoe_adamw_constants o = *c->constants;
    const float *restrict g = c->in[0];
    float *restrict p = c->out[0], *restrict m = c->out[1], *restrict v = c->out[2];
    for (int64_t i = begin; i < end; i++) {
        m[i] = m[i] * o.beta1 + g[i] * o.rest1;
        v[i] = v[i] * o.beta2 + g[i] * o.rest2 * g[i];
        p[i] = p[i] * o.decay - m[i] * o.rate / (__builtin_sqrtf(v[i]) * o.root + o.eps);
    }
}

/* ---- sharing out rows or elements ---- */

typedef void call_function(const struct call *c, int64_t begin, int64_t end);

struct task {
    call_function *function;
    const struct call *call;
};

static void run_range(const void *task, int64_t begin, int64_t end, int thread)
{
    const struct task *t = task;
    (void)thread;
    t->function(t->call, begin, end);
}

static void run(call_function *function, const struct call *c, int64_t size, int64_t at_once, int threads)
{
    struct task task = {function, c};
    share_out(run_range, &task, size, at_once, threads);
}

/* ---- checks ---- */

static int check_how(const refmoe_how *how)
{
    if (!refmoe_kernel(how->kernel))
        return REFMOE_BAD_KERNEL;
    return how->threads < 1 ? REFMOE_BAD_THREADS : REFMOE_OK;
}

/* The product of sizes that are not negative, into *size. */
static int check_sizes(const int64_t *sizes, int count, int64_t *size)
{
    *size = 1;
    for (int i = 0; i < count; i++)
        if (sizes[i] < 0 || __builtin_mul_overflow(*size, sizes[i], size) || *size > INT64_C(1) << 60)
            return REFMOE_BAD_SIZE;
    return REFMOE_OK;
}

static int check_arrays(const struct call *c, int inputs, int outputs)
{
    for (int i = 0; i < inputs; i++)
        if (!c->in[i])
            return REFMOE_BAD_POINTER;
    for (int i = 0; i < outputs; i++)
        if (!c->out[i])
            return REFMOE_BAD_POINTER;
    return REFMOE_OK;
}

static int run_rows(const refmoe_how *how, call_function *function, const struct call *c, int64_t n, int inputs,
                    int outputs)
{
    int64_t size;
    int status = check_how(how);
    if (!status)
        status = c->m < 1 ? REFMOE_BAD_SIZE : check_sizes((const int64_t[]){n, c->m}, 2, &size);
    if (!status && size > 0)
        status = check_arrays(c, inputs, outputs);
    if (status || size == 0)
        return status;
    int64_t rows = c->m < RUN / ROWS ? RUN / c->m / ROWS * ROWS : ROWS;
    run(function, c, n, rows, how->threads);
    return REFMOE_OK;
}

/* ---- the public functions ---- */

int refmoe_rms_norm(const refmoe_how *how, int64_t n, int64_t m, float eps, const float *x, const float *w, float *rms,
                    float *normed, float *out)
{
    struct call call = {.m = m, .eps = eps, .in = {x, w}, .out = {rms, normed, out}};
    return run_rows(how, norm_rows, &call, n, 2, 3);
}

int refmoe_rms_norm_backward(const refmoe_how *how, int64_t n, int64_t m, const float *d, const float *normed,
                             const float *rms, const float *w, float *d_x, float *d_gain)
{
    struct call call = {.m = m, .in = {d, normed, rms, w}, .out = {d_x, d_gain}};
    return run_rows(how, norm_rows_backward, &call, n, 4, 2);
}

int refmoe_adamw(const refmoe_how *how, const refmoe_adamw_constants *constants, int64_t n, const float *g, float *p,
                 float *m, float *v)
{
    int64_t size;
    struct call call = {.constants = constants, .in = {g}, .out = {p, m, v}};
    int status = check_how(how);
    if (!status)
        status = check_sizes(&n, 1, &size);
    if (!status && (!constants || (n > 0 && check_arrays(&call, 1, 3))))
        status = REFMOE_BAD_POINTER;
    if (!status && n > 0)
        run(adamw, &call, n, RUN, how->threads);
    return status;
}
