/* attention.c: refmoe_attention.h, a head at a time, on the tiles of the chain profile.

   A head's scores fit the second cache, so they are never written but for the weights. Row i has i + 1 places: blocks of
   rows stop where their last row does, and sums over rows begin where the first row of their block does. What is left out
   are zeros times numbers: they change nothing, unless a number is not finite, which `whole` looks for, or the sum before
   them is -0, which `append_zeros` does. */

#include "formulas.h"
#include "refmoe_attention.h"
#include "share_out.h"
#include "turn.h"

struct call {
    const struct kernel *kernel;
    formula_function *softmax;
    int64_t batch, size, heads, width, per_thread;
    float root;
    const float *qkv, *bias, *weights_read, *d_context;
    float *weights, *context, *d_qkv, *room;
    refmoe_open *open;
};

static int64_t whole_columns(const struct kernel *k, int64_t count)
{
    int64_t cols = k->tile[REFMOE_CHAIN].cols;
    return (count + cols - 1) / cols * cols;
}

/* ---- matrices as tiles read them ---- */

/* to[k, j] = x[k step + j] factor. */
static void copy(float *to, int64_t pitch, const float *x, int64_t step, int64_t length, int64_t count, float factor)
{
    for (int64_t k = 0; k < length; k++, to += pitch, x += step) {
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) {
            four v;
            memcpy(&v, x + j, sizeof v);
            v *= factor;
            memcpy(to + j, &v, sizeof v);
        }
        for (; j < count; j++)
            to[j] = x[j] * factor;
    }
}

/* to[k, j] = x[k step + j col] factor for `count` columns; one of the two steps is 1. */
static void lay(float *to, int64_t pitch, const float *x, int64_t step, int64_t col, int64_t length, int64_t count,
                float factor)
{
    if (col == 1) {
        copy(to, pitch, x, step, length, count, factor);
    } else {
        turn_block(x, col, length, count, pitch, to);
        if (factor != 1)
            copy(to, pitch, to, pitch, length, count, factor);
    }
}

/* The right factor of a product: panels of a tile's columns, one after the other. */
struct right {
    const float *panel;
    int64_t length, cols;
};

static struct right lay_right(const struct kernel *kernel, float **room, const float *x, int64_t step, int64_t col,
                              int64_t length, int64_t cols, float factor)
{
    const int64_t wide = kernel->tile[REFMOE_CHAIN].cols;
    struct right made = {*room, length, cols};
    if (cols % wide)
        memset(*room + cols / wide * wide * length, 0, (size_t)(wide * length) * sizeof **room);
    for (int64_t at = 0; at < cols; at += wide, *room += length * wide)
        lay(*room, wide, x + at * col, step, col, length, lower(wide, cols - at), factor);
    return made;
}

/* Columns at .. at + the tile's of left times the rows of `right` from `first` on. */
static void multiply(const struct kernel *kernel, int rows, int64_t length, const float *left, const struct right *right,
                     int64_t first, int64_t at, float *made)
{
    const struct tile *tile = &kernel->tile[REFMOE_CHAIN];
    const float *panel = right->panel + at * right->length + first * tile->cols;
    float sum[MAX_TILE_ROWS * MAX_TILE_COLS] __attribute__((aligned(64)));
    if (tile->whole) {
        struct whole whole = {.a = left, .b = panel, .length = length, .ldb = tile->cols, .out_row = tile->cols,
                              .out = made, .format = REFMOE_FLOAT32};
        tile->whole(rows, &whole, NULL);
        return;
    }
    memset(sum, 0, (size_t)(rows * tile->cols) * sizeof *sum);
    tile->multiply(rows, length, left, panel, tile->cols, sum);
    kernel->settle(rows, tile->cols, sum, NULL, NULL, REFMOE_FLOAT32, made);
}

/* out[i, j] = the product's, for the first `cols` columns. */
static void fill(const struct kernel *kernel, int rows, int64_t length, const float *left, const struct right *right,
                 int64_t cols, float *out, int64_t out_row)
{
    const int wide = kernel->tile[REFMOE_CHAIN].cols;
    float made[MAX_TILE_ROWS * MAX_TILE_COLS] __attribute__((aligned(64)));
    for (int64_t at = 0; at < cols; at += wide) {
        multiply(kernel, rows, length, left, right, 0, at, made);
        for (int i = 0; i < rows; i++)
            memcpy(out + i * out_row + at, made + i * wide, (size_t)lower(wide, cols - at) * sizeof *out);
    }
}

/* A sum of -0 goes on over zeros times the numbers of its column. */
static void append_zeros(float *sum, int64_t count, const float *x, int64_t step, int64_t length)
{
    for (int64_t j = 0; j < count; j++)
        for (int64_t k = 0; k < length && bits_of_float(sum[j]) == 0x80000000; k++)
            sum[j] += 0.0f * x[k * step + j];
}

static int has_minus_zero(const float *x, int64_t count)
{
    uint32_t found = 0;
    for (int64_t j = 0; j < count; j++)
        found |= bits_of_float(x[j]) == 0x80000000;
    return found != 0;
}

/* out[i, j] = factor times the product over rows first .. first + length of `right`; the rest of them meet +0. */
static void fill_scaled(const struct kernel *kernel, int rows, int64_t first, int64_t length, const float *left,
                        const struct right *right, float factor, float *out, int64_t out_row)
{
    const int wide = kernel->tile[REFMOE_CHAIN].cols;
    const int64_t rest = right->length - first - length;
    float made[MAX_TILE_ROWS * MAX_TILE_COLS] __attribute__((aligned(64)));
    for (int64_t at = 0; at < right->cols; at += wide) {
        const float *beyond = right->panel + at * right->length + (first + length) * wide;
        const int64_t cols = lower(wide, right->cols - at);
        multiply(kernel, rows, length, left, right, first, at, made);
        if (rest > 0 && has_minus_zero(made, rows * wide))
            for (int i = 0; i < rows; i++)
                append_zeros(made + i * wide, cols, beyond, wide, rest);
        copy(out + at, out_row, made, wide, rows, cols, factor);
    }
}

static int is_finite_block(const float *x, int64_t step, int64_t rows, int64_t cols)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < rows; i++, x += step)
        for (int64_t j = 0; j < cols; j++)
            bad |= (bits_of_float(x[j]) & 0x7F800000) == 0x7F800000;
    return !bad;
}

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
