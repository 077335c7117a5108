/* formulas_rows.h: formulas that read a whole row: softmax, its gradient, log-sum-exp. Included by formulas_template.h.

   p_j = t_j / S, t_j = exp(-d_j), d_j = top - z_j >= 0, S = sum t_i. d_j is off by u d_j, so t_j by (3.6 + d_j) u. In S
   that is (3.6 + sum p_i d_i) u, and sum p_i d_i <= ln n < 8, for the entropy of p is at most ln n; adding up in lanes
   brings n / LANES + LANES roundings more. Bounds below are twice what is counted, again. */

enum { ROW_ROOM = REFMOE_LONGEST_ROW + LANES };

struct row {
    int64_t count, top; /* elements; the first of the largest that are used, -1 if none is */
    double largest, rest, error; /* z_top; S - 1; the relative error of S and of a quotient by it */
    int is_open, is_far; /* something is not finite; some d_j was cut to 400 */
    double distance[ROW_ROOM], power[ROW_ROOM]; /* d, t: 0 where not used, and t_top = 0 while `rest` is made */
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

INLINE void find_top(struct row *row, const float *z, const uint8_t *used)
{
    row->top = -1;
    for (int64_t j = 0; j < row->count; j++)
        if ((!used || used[j]) && (row->top < 0 || z[j] > z[row->top]))
            row->top = j;
    row->is_open = !all_finite(z, row->count);
    row->largest = row->top < 0 ? 0 : (double)z[row->top];
}

/* Everything of struct row. */
INLINE void make_row(struct row *row, const float *z, const uint8_t *used, int64_t count)
{
    vd rest = {0};
    row->count = count;
    find_top(row, z, used);
    if (row->is_open || row->top < 0)
        return;
    for (int64_t j = 0; j < count + LANES; j++)
        row->distance[j] = j < count && (!used || used[j]) ? row->largest - (double)z[j] : 401;
    row->is_far = 0;
    for (int64_t j = 0; j < count; j++)
        row->is_far |= row->distance[j] > 400 && (!used || used[j]);
    for (int64_t j = 0; j < count; j += LANES)
        store(row->power + j, exp_minus(LEAST(load(row->distance + j), spread(400.0))));
    for (int64_t j = 0; j < count + LANES; j++)
        if (j >= count || j == row->top || (used && !used[j]))
            row->power[j] = row->distance[j] = 0;
    for (int64_t j = 0; j < count; j += LANES)
        rest += load(row->power + j);
    row->rest = total(rest);
    row->power[row->top] = 1;
    row->error = (double)(count / LANES + LANES + 24) * 0x1p-52;
}

/* settle() for LANES results from `at` on; true if one of them stays open. */
INLINE int finish_row(struct bounded y, const struct formula_call *c, const struct row *row, float *out, int64_t at)
{
    float lanes[LANES];
    int64_t count = row->count - at < LANES ? row->count - at : LANES;
    uint32_t bits = c->narrow ? settle(y, 1, c->format, lanes) : settle(y, 0, c->format, lanes);
    memcpy(out + at, lanes, (size_t)count * sizeof *lanes);
    return (bits & ((UINT32_C(1) << count) - 1)) != 0;
}

/* c p, whose relative error is error + 2 u d. */
INLINE struct bounded share(const struct row *row, double c, int64_t at)
{
    vd t = load(row->power + at), d = load(row->distance + at);
    struct bounded y = {.v = t * spread(c) / spread(1 + row->rest)};
    y.e = y.v * FMA(LEAST(d, spread(400.0)), spread(0x1p-52), spread(row->error));
    return y;
}

static TARGET void softmax_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    struct row row;
    for (int64_t n = begin; n < end; n++) {
        const float *z = c->in[0] + n * c->length;
        const uint8_t *used = c->used ? c->used + n * c->length : NULL;
        float *out = c->out[0] + n * c->length;
        make_row(&row, z, used, c->length);
        int open = row.is_open;
        if (row.top < 0)
            memset(out, 0, (size_t)c->length * sizeof *out);
        else
            for (int64_t at = 0; !open && at < row.count; at += LANES)
                open = finish_row(share(&row, c->factor, at), c, &row, out, at);
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
    double first = (double)g[row->top];
    for (int64_t j = 0; j < row->count + LANES; j++)
        m->difference[j] = j < row->count && (!used || used[j]) ? (double)g[j] - first : 0;
    for (int64_t at = 0; at < row->count; at += LANES) {
        struct bounded p = share(row, 1, at);
        vd s = load(m->difference + at);
        mean += p.v * s;
        error += size_of(s) * FMA(p.v, spread(row->error), p.e);
    }
    m->mean = total(mean);
    m->error = total(error) * (1 + 0x1p-20);
}

INLINE struct bounded centred(const struct centre *m, const struct row *row, double c, int64_t at)
{
    struct bounded p = share(row, c, at);
    vd s = load(m->difference + at), from = s - spread(m->mean), u = spread(0x1p-52);
    vd lost = FMA(size_of(s) + size_of(from), u, spread(m->error));
    struct bounded y = {.v = p.v * from};
    y.e = FMA(p.v, lost, size_of(from) * FMA(p.v, spread(4 * 0x1p-52), p.e)) * spread(1 + 0x1p-20);
    return y;
}

static TARGET void softmax_backward_rows(const struct formula_call *c, int64_t begin, int64_t end)
{
    struct row row;
    struct centre centre;
    for (int64_t n = begin; n < end; n++) {
        int64_t first = n * c->length;
        const uint8_t *used = c->used ? c->used + first : NULL;
        float *out = c->out[0] + first;
        make_row(&row, c->in[1] + first, used, c->length);
        if (row.top < 0)
            memset(out, 0, (size_t)c->length * sizeof *out);
        else if (!row.is_open)
            make_centre(&centre, &row, c->in[0] + first, used);
        int open = row.is_open;
        for (int64_t at = 0; !open && row.top >= 0 && at < row.count; at += LANES)
            open = finish_row(centred(&centre, &row, c->factor, at), c, &row, out, at);
        if (open)
            note_open(c->open[0], n);
    }
}

/* ---- log-sum-exp ---- */

/* log(1 + x), x >= 0: 16 u. 2 atanh(f) = 2 f (1 + f^2/3 + ... + f^20/21), |f| <= 0.1716, stops short of 2^-57; f is x / (2 +
   x) where that is as small, else (m - 1) / (m + 1), 1 + x = 2^k m, m about 1: off by 3 u. k ln2 at most doubles the
   relative error of the sum. */
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
