/* attention.c: refmoe_attention.h, a head at a time, on the tiles of the chain profile.

   A head's scores fit the second cache, so they are never written but for the weights. Row i has i + 1 places: blocks
   of rows stop where their last row does, and sums over rows begin where the first row of their block does. What is
   left out are zeros times numbers: they change nothing, unless a number is not finite, which `whole` looks for, or the
   sum before them is -0, which `append_zeros` does. */

#include "formulas.h"
#include "panels.h"
#include "refmoe_attention.h"
#include "share_out.h"

struct call {
    const struct kernel *kernel;
    formula_function *softmax;
    int64_t batch, size, heads, width, per_thread;
    float root;
    const float *qkv, *bias, *weights_read, *d_context;
    float *weights, *context, *d_qkv, *room;
    refmoe_open *open;
};

/* ---- one head ---- */

/* Where a head's numbers lie in the arrays of tokens: the first of q, and from one token to the next. */
struct head {
    int64_t number, of_batch, at, step;
};

static struct head head_of(const struct call *c, int64_t number)
{
    int64_t step = 3 * c->heads * c->width, batch = number / c->heads, h = number % c->heads;
    return (struct head){number, h, batch * c->size * step + h * c->width, step};
}

static int64_t token_of(const struct call *c, struct head h)
{
    return h.number / c->heads * c->size * c->heads * c->width + h.of_batch * c->width;
}

static void add_bias(const struct call *c, struct head h, int64_t first, int rows, float *z)
{
    const float *bias = c->bias + (h.of_batch * c->size + first) * c->size;
    for (int64_t i = 0; i < rows * c->size; i++)
        z[i] += bias[i];
}

/* Rows first .. first + rows of the weights from their logits z: row i has i + 1 places. */
static void share(const struct call *c, struct head h, int64_t first, int rows, const float *z)
{
    float *out = c->weights + (h.number * c->size + first) * c->size;
    for (int64_t i = first; i < first + rows; i++, z += c->size, out += c->size) {
        struct formula_call call = {.format = &refmoe_formats[REFMOE_FLOAT32], .length = i + 1, .factor = 1,
                                    .in[0] = z, .out[0] = out, .open[0] = c->open};
        c->softmax(&call, 0, 1);
        memset(out + i + 1, 0, (size_t)(c->size - i - 1) * sizeof *out);
    }
}

static void forward_head(const struct call *c, struct head h, float *room)
{
    const struct kernel *kernel = c->kernel;
    const int64_t S = c->size, d = c->width, D = c->heads * d, tall = kernel->tile[REFMOE_CHAIN].rows;
    const float *q = c->qkv + h.at, *k = q + D, *v = k + D;
    float *left = room, *z = left + tall * (S > d ? S : d), *context = c->context + token_of(c, h);
    room = z + tall * S;
    memset(z, 0, (size_t)(tall * S) * sizeof *z);
    const struct right keys = lay_right(kernel, &room, k, 1, h.step, d, S, 1);
    const struct right values = lay_right(kernel, &room, v, h.step, 1, S, d, 1);
    const int whole = !is_finite_block(v, h.step, S, d);
    for (int64_t first = 0; first < S; first += tall) {
        const int rows = (int)lower(tall, S - first);
        lay(left, tall, q + first * h.step, 1, h.step, d, rows, c->root);
        fill(kernel, rows, d, left, &keys, first + rows, z, S);
        if (c->bias)
            add_bias(c, h, first, rows, z);
        share(c, h, first, rows, z);
        const int64_t length = whole ? S : first + rows;
        lay(left, tall, c->weights + (h.number * S + first) * S, 1, S, length, rows, 1);
        fill_scaled(kernel, rows, 0, length, left, &values, 1, context + first * D, D);
    }
}

/* sum[r] of d_j p_j over the places of row first + r: ABREAST sums at a time, for each waits for its last addition. */
enum { ABREAST = 4 };

static void sum_along(const float *p, const float *d, int64_t size, int64_t first, int rows, float *sum)
{
    float s[ABREAST] = {0};
    if (rows == ABREAST)
        for (int64_t j = 0; j <= first; j++)
            for (int r = 0; r < ABREAST; r++)
                s[r] += d[r * size + j] * p[r * size + j];
    for (int r = 0; r < rows; r++) {
        for (int64_t j = rows == ABREAST ? first + 1 : 0; j <= first + r; j++)
            s[r] += d[r * size + j] * p[r * size + j];
        sum[r] = s[r];
    }
}

/* d_z = (d - sum_j(d_j p_j)) p in place of d, rows first .. first + rows of the head. */
static void share_backward(const float *p, int64_t size, int64_t first, int rows, float *d)
{
    float along[MAX_TILE_ROWS];
    for (int at = 0; at < rows; at += ABREAST)
        sum_along(p + at * size, d + at * size, size, first + at, (int)lower(ABREAST, rows - at), along + at);
    for (int r = 0; r < rows; r++, p += size, d += size) {
        for (int64_t j = 0; j <= first + r; j++)
            d[j] = (d[j] - along[r]) * p[j];
        memset(d + first + r + 1, 0, (size_t)(size - first - r - 1) * sizeof *d);
    }
}

static void backward_head(const struct call *c, struct head h, float *room)
{
    const struct kernel *kernel = c->kernel;
    const int64_t S = c->size, d = c->width, D = c->heads * d, tall = kernel->tile[REFMOE_CHAIN].rows;
    const float *q = c->qkv + h.at, *k = q + D, *v = k + D, *d_context = c->d_context + token_of(c, h);
    const float *p = c->weights_read + h.number * S * S;
    float *left = room, *d_z = left + tall * (S > d ? S : d), *d_q = c->d_qkv + h.at, *d_k = d_q + D, *d_v = d_k + D;
    room = d_z + S * S;
    const struct right values = lay_right(kernel, &room, v, 1, h.step, d, S, 1);
    const struct right keys = lay_right(kernel, &room, k, h.step, 1, S, d, 1);
    const struct right queries = lay_right(kernel, &room, q, h.step, 1, S, d, c->root);
    const struct right contexts = lay_right(kernel, &room, d_context, D, 1, S, d, 1);
    const int whole = !is_finite_block(k, h.step, S, d) || !is_finite_block(d_context, D, S, d)
                      || !is_finite_block(queries.panel, whole_columns(kernel, d), S, d);
    for (int64_t first = 0; first < S; first += tall) {
        const int rows = (int)lower(tall, S - first);
        const int64_t length = whole ? S : first + rows;
        lay(left, tall, d_context + first * D, 1, D, d, rows, 1);
        fill(kernel, rows, d, left, &values, first + rows, d_z + first * S, S);
        share_backward(p + first * S, S, first, rows, d_z + first * S);
        lay(left, tall, d_z + first * S, 1, S, length, rows, 1);
        fill_scaled(kernel, rows, 0, length, left, &keys, c->root, d_q + first * h.step, h.step);
    }
    for (int64_t first = 0; first < S; first += tall) {
        const int rows = (int)lower(tall, S - first);
        const int64_t from = whole ? 0 : first;
        lay(left, tall, d_z + from * S + first, S, 1, S - from, rows, 1);
        fill_scaled(kernel, rows, from, S - from, left, &queries, 1, d_k + first * h.step, h.step);
        lay(left, tall, p + from * S + first, S, 1, S - from, rows, 1);
        fill_scaled(kernel, rows, from, S - from, left, &contexts, 1, d_v + first * h.step, h.step);
    }
}

static void run_heads(const void *call, int64_t begin, int64_t end, int thread)
{
    const struct call *c = call;
    for (int64_t i = begin; i < end; i++) {
        float *room = c->room + thread * c->per_thread;
        if (c->d_context)
            backward_head(c, head_of(c, i), room);
        else
            forward_head(c, head_of(c, i), room);
    }
}

/* ---- checks ---- */

static int check(const refmoe_how *how, const refmoe_heads *heads)
{
    int64_t numbers = 1, limit = INT64_C(1) << 60;
    if (!refmoe_formulas(how->kernel))
        return REFMOE_BAD_KERNEL;
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    if (!heads)
        return REFMOE_BAD_POINTER;
    const int64_t size[] = {heads->heads, heads->width, heads->size, heads->size, heads->batch, 3};
    for (int i = 0; i < 6; i++) {
        int bad = size[i] < (i == 4 ? 0 : 1) || __builtin_mul_overflow(numbers, size[i] + (i == 4), &numbers);
        if (bad || numbers > limit)
            return REFMOE_BAD_SIZE;
    }
    return heads->size > REFMOE_LONGEST_ROW ? REFMOE_BAD_PROFILE : REFMOE_OK;
}

/* Of one thread, for either direction. */
static int64_t room_of(const struct kernel *kernel, const refmoe_heads *heads)
{
    int64_t S = heads->size, d = heads->width, tall = kernel->tile[REFMOE_CHAIN].rows;
    int64_t left = tall * (S > d ? S : d), z = S * (S > tall ? S : tall);
    return (left + z + d * whole_columns(kernel, S) + 3 * S * whole_columns(kernel, d) + 15) / 16 * 16;
}

static int run(const refmoe_how *how, struct call *c, const refmoe_heads *heads)
{
    c->kernel = refmoe_kernel(how->kernel), c->softmax = refmoe_formulas(how->kernel)->softmax;
    c->batch = heads->batch, c->size = heads->size, c->heads = heads->heads, c->width = heads->width;
    c->per_thread = room_of(c->kernel, heads);
    share_out(run_heads, c, heads->batch * heads->heads, 1, how->threads);
    return REFMOE_OK;
}

/* ---- the public functions ---- */

int64_t refmoe_attention_room(const refmoe_how *how, const refmoe_heads *heads)
{
    return check(how, heads) ? -1 : how->threads * room_of(refmoe_kernel(how->kernel), heads);
}

int refmoe_attention(const refmoe_how *how, const refmoe_heads *heads, float root, const float *qkv, const float *bias,
                     float *weights, float *context, float *room, refmoe_open *open)
{
    int status = check(how, heads);
    if (status)
        return status;
    if (!open || open->room < 0 || (open->room > 0 && !open->index)
        || (heads->batch > 0 && (!qkv || !weights || !context || !room)))
        return REFMOE_BAD_POINTER;
    struct call call = {.root = root, .qkv = qkv, .bias = bias, .weights = weights, .context = context,
                        .room = room, .open = open};
    open->count = 0;
    return run(how, &call, heads);
}

int refmoe_attention_backward(const refmoe_how *how, const refmoe_heads *heads, float root, const float *qkv,
                              const float *weights, const float *d_context, float *d_qkv, float *room)
{
    int status = check(how, heads);
    if (status || heads->batch == 0)
        return status;
    if (!qkv || !weights || !d_context || !d_qkv || !room)
        return REFMOE_BAD_POINTER;
    struct call call = {.root = root, .qkv = qkv, .weights_read = weights, .d_context = d_context, .d_qkv = d_qkv,
                        .room = room};
    return run(how, &call, heads);
}
