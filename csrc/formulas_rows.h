/* formulas_rows.h: formulas that read a whole row: softmax, its gradient, log-sum-exp. Included by formulas_template.h.

   p_j = t_j / S, t_j = exp(-d_j), d_j = top - z_j >= 0, S = sum t_i. d_j is off by u d_j, so t_j by (3.6 + d_j) u. In S
   that is (3.6 + sum p_i d_i) u, and sum p_i d_i <= ln n < 8, for the entropy of p is at most ln n; adding up in lanes
   brings n / LANES + LANES roundings more. Bounds below are twice what is counted, again. */

enum { ROW_ROOM = REFMOE_LONGEST_ROW + LANES };

#define ALIGNED __attribute__((aligned(64)))

struct row {
    int64_t count, top; /* elements; the first of the largest that are used, -1 if none is */
    double largest, rest, error; /* z_top; S - 1; the relative error of S and of a quotient by it */
    int is_open, is_far; /* something is not finite; some d_j was cut to 400 */
    double distance[ROW_ROOM] ALIGNED, power[ROW_ROOM] ALIGNED; /* d, t: 0 where not used; t_top = 0 while S is made */
};

INLINE double total(vd x)
{
    double sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += x[i];
    return sum;
}

INLINE vd load(const double *p)
{
    vd x;
    memcpy(&x, p, sizeof x);
    return x;
}

INLINE void store(double *p, vd x) { memcpy(p, &x, sizeof x); }

INLINE int all_finite(const float *x, int64_t count)
{
    uint32_t bad = 0;
    for (int64_t j = 0; j < count; j++)
        bad |= (bits_of_float(x[j]) & 0x7F800000) == 0x7F800000;
    return !bad;
}

/* Elements up to the last one that is used. */
INLINE int64_t used_count(const uint8_t *used, int64_t count)
{
    for (uint64_t eight = 0; count >= 8; count -= 8) {
        memcpy(&eight, used + count - 8, sizeof eight);
        if (eight)
            break;
    }
    while (count > 0 && !used[count - 1])
        count--;
    return count;
}

/* z as doubles, minus infinity where not used, and beyond the end. */
INLINE void enter_row(struct row *row, const float *z, const uint8_t *used)
{
    const double none = -__builtin_inf();
    if (used)
        for (int64_t j = 0; j < row->count; j++)
            row->distance[j] = used[j] ? (double)z[j] : none;
    else
        for (int64_t j = 0; j < row->count; j++)
            row->distance[j] = (double)z[j];
    store(row->distance + row->count, spread(none));
}

INLINE uint32_t lanes_of(vi mask) { return (uint32_t)SIGNS((half)__builtin_convertvector(mask, half_int)); }

INLINE void find_top(struct row *row)
{
    vd largest = load(row->distance);
    for (int64_t at = LANES; at < row->count; at += LANES)
        largest = MOST(largest, load(row->distance + at));
    row->largest = largest[0];
    for (int i = 1; i < LANES; i++)
        row->largest = largest[i] > row->largest ? largest[i] : row->largest;
    row->top = 0;
    uint32_t found = 0;
    for (; !found; row->top += LANES)
        found = lanes_of(load(row->distance + row->top) == spread(row->largest));
    row->top += __builtin_ctz(found) - LANES;
}

/* distance, power, rest, is_far. */
INLINE void make_powers(struct row *row)
{
    vd rest = {0};
    vi far = {0};
    for (int64_t at = 0; at < row->count; at += LANES) {
        vd z = load(row->distance + at), d = spread(row->largest) - z;
        vi is_used = z > spread(-__builtin_inf());
        vd t = (vd)((vi)exp_minus(LEAST(d, spread(400.0))) & is_used);
        far |= (d > spread(400.0)) & is_used;
        if ((uint64_t)(row->top - at) < LANES)
            t[row->top - at] = 0;
        store(row->distance + at, (vd)((vi)d & is_used));
        store(row->power + at, t);
        rest += t;
    }
    row->rest = total(rest);
    row->is_far = lanes_of(far) != 0;
}

/* Everything of struct row. */
INLINE void make_row(struct row *row, const float *z, const uint8_t *used, int64_t count)
{
    row->count = used ? used_count(used, count) : count;
    row->top = -1;
    row->is_open = !all_finite(z, row->count);
    if (row->is_open || row->count == 0)
        return;
    enter_row(row, z, used && memchr(used, 0, (size_t)row->count) ? used : NULL);
    find_top(row);
    make_powers(row);
    row->power[row->top] = 1;
    row->error = (double)(count / LANES + LANES + 24) * 0x1p-52;
}

/* settle() for the results from `at` on, at most LANES; true if one of them stays open. */
INLINE int finish_row(struct bounded y, const int narrow, const struct formula_call *c, const struct row *row,
                      float *out, int64_t at)
{
    if (at + LANES <= row->count)
        return settle(y, narrow, c->format, out + at) != 0;
    float lanes[LANES];
    uint32_t bits = settle(y, narrow, c->format, lanes);
    for (int64_t i = 0; at + i < row->count; i++)
        out[at + i] = lanes[i];
    return (bits & ((UINT32_C(1) << (row->count - at)) - 1)) != 0;
}

/* +0 for what is not used at the row's end. */
INLINE void finish_end(const struct formula_call *c, const struct row *row, float *out)
{
    memset(out + row->count, 0, (size_t)(c->length - row->count) * sizeof *out);
}

/* scale t, scale = c / S, whose relative error is error + 2 u d. */
INLINE struct bounded share(const struct row *row, double scale, int64_t at)
{
    vd t = load(row->power + at), d = load(row->distance + at);
    struct bounded y = {.v = t * spread(scale)};
    y.e = y.v * FMA(LEAST(d, spread(400.0)), spread(0x1p-52), spread(row->error));
    return y;
}

INLINE int softmax_row(const int narrow, const struct formula_call *c, const struct row *row, float *out)
{
    int open = 0;
    double scale = c->factor / (1 + row->rest);
    for (int64_t at = 0; at < row->count; at += LANES)
        open |= finish_row(share(row, scale, at), narrow, c, row, out, at);
    return open;
}

static TARGET void softmax_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    struct row row;
    for (int64_t n = begin; n < end; n++) {
        float *out = c->out[0] + n * c->length;
        make_row(&row, c->in[0] + n * c->length, c->used ? c->used + n * c->length : NULL, c->length);
        finish_end(c, &row, out);
        int open = row.is_open;
        if (!open && (c->narrow ? softmax_row(1, c, &row, out) : softmax_row(0, c, &row, out)))
            open = !refmoe_softmax_again(c, n);
        if (open)
            note_open(c->open[0], n);
    }
}

/* ---- c p_j (G_j - sum_i G_i p_i) ---- */

/* Differences s_i = G_i - G_top: equal values give exact zeros, and a dominant p does not cancel what others leave. */
struct centre {
    double difference[ROW_ROOM];
    double mean, error; /* sum p_i s_i, and its bound: sum p_i |s_i| (error of p_i + roundings) */
};

INLINE void make_centre(struct centre *m, struct row *row, const float *g, const uint8_t *used)
{
    vd mean = {0}, error = {0};
    row->is_open |= row->is_far || !all_finite(g, row->count);
    double first = (double)g[row->top], scale = 1 / (1 + row->rest);
    for (int64_t j = 0; j < row->count + LANES; j++)
        m->difference[j] = j < row->count && (!used || used[j]) ? (double)g[j] - first : 0;
    for (int64_t at = 0; at < row->count; at += LANES) {
        struct bounded p = share(row, scale, at);
        vd s = load(m->difference + at);
        mean += p.v * s;
        error += size_of(s) * FMA(p.v, spread(row->error), p.e);
    }
    m->mean = total(mean);
    m->error = total(error) * (1 + 0x1p-20);
}

INLINE struct bounded centred(const struct centre *m, const struct row *row, double scale, int64_t at)
{
    struct bounded p = share(row, scale, at);
    vd s = load(m->difference + at), from = s - spread(m->mean), u = spread(0x1p-52);
    vd lost = FMA(size_of(s) + size_of(from), u, spread(m->error));
    struct bounded y = {.v = p.v * from};
    y.e = FMA(p.v, lost, size_of(from) * FMA(p.v, spread(4 * 0x1p-52), p.e)) * spread(1 + 0x1p-20);
    return y;
}

INLINE int centred_row(const int narrow, const struct formula_call *c, const struct row *row, const struct centre *m,
                       float *out)
{
    int open = 0;
    double scale = c->factor / (1 + row->rest);
    for (int64_t at = 0; at < row->count; at += LANES)
        open |= finish_row(centred(m, row, scale, at), narrow, c, row, out, at);
    return open;
}

static TARGET void softmax_backward_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    struct row row;
    struct centre m;
    for (int64_t n = begin; n < end; n++) {
        const uint8_t *used = c->used ? c->used + n * c->length : NULL;
        float *out = c->out[0] + n * c->length;
        make_row(&row, c->in[1] + n * c->length, used, c->length);
        finish_end(c, &row, out);
        if (row.top >= 0)
            make_centre(&m, &row, c->in[0] + n * c->length, used);
        if (row.is_open || (c->narrow ? centred_row(1, c, &row, &m, out) : centred_row(0, c, &row, &m, out)))
            note_open(c->open[0], n);
    }
}

/* ---- log-sum-exp ---- */

/* log(1 + x), x >= 0: 16 u. 2 atanh(f) = 2 f (1 + f^2/3 + ... + f^20/21), |f| <= 0.1716, stops short of 2^-57; f is x /
   (2 + x) where that is as small, else (m - 1) / (m + 1), 1 + x = 2^k m, m about 1: off by 3 u. k ln2 at most doubles
   the relative error of the sum. */
INLINE double log_one_plus(double x)
{
    double k = 0, f = x / (2 + x);
    if (x > 0.4) {
        uint64_t bits = bits_of_double(1 + x) + (UINT64_C(0x3FF0000000000000) - UINT64_C(0x3FE6A09E667F3BCD));
        k = (double)((int64_t)(bits >> 52) - 1023);
        double m = double_of_bits((bits & UINT64_C(0xFFFFFFFFFFFFF)) + UINT64_C(0x3FE6A09E667F3BCD));
        f = (m - 1) / (m + 1);
    }
    double square = f * f, sum = 1.0 / 21;
    for (int i = 19; i >= 3; i -= 2)
        sum = sum * square + 1.0 / i;
    return k * 0x1.62e42fefa3800p-1 + (2 * f + (2 * f * (square * sum) + k * 0x1.ef35793c76730p-45));
}

/* top + log S: S is off by `error`, and x / (1 + x) <= log(1 + x). */
static TARGET void log_sum_exp_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    struct row row;
    for (int64_t n = begin; n < end; n++) {
        make_row(&row, c->in[0] + n * c->length, NULL, c->length);
        float lanes[LANES];
        uint32_t open = 1;
        if (!row.is_open) {
            double log = log_one_plus(row.rest), v = row.largest + log;
            double e = log * (row.error + 32 * 0x1p-53) + (v < 0 ? -v : v) * 0x1p-51;
            struct bounded y = {spread(v), spread(e)};
            open = c->narrow ? settle(y, 1, c->format, lanes) : settle(y, 0, c->format, lanes);
            c->out[0][n] = lanes[0];
        }
        if (open)
            note_open(c->open[0], n);
    }
}
