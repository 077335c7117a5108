/* grouped_matmul.c: the public functions of the three products: check, describe the product, have it computed. */

#include "product.h"

/* ---- checks ---- */

static int is_product_sane(int64_t a, int64_t b, int64_t c)
{
    int64_t ab, abc;
    if (a < 0 || b < 0 || c < 0 || __builtin_mul_overflow(a, b, &ab) || __builtin_mul_overflow(ab, c, &abc))
        return 0;
    return a < INT64_C(1) << 60 && b < INT64_C(1) << 60 && c < INT64_C(1) << 60 && ab < INT64_C(1) << 60
           && abc < INT64_C(1) << 60;
}

static int is_missing(const void *array, int64_t size) { return size > 0 && !array; }

static int is_operand_format(int format, int narrow_item)
{
    return narrow_item ? format >= REFMOE_FLOAT32 && format <= REFMOE_FP16 : format == REFMOE_FLOAT64;
}

/* Formats of 8 bits and less are for weights alone: `scaled` says whether the second operand is weights. */
static int check_how(const refmoe_how *how, size_t item, int scaled)
{
    if (!refmoe_kernel(how->kernel))
        return REFMOE_BAD_KERNEL;
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    int narrow_item = item == sizeof(float);
    if (narrow_item ? how->profile != REFMOE_EXACT && how->profile != REFMOE_CHAIN : how->profile != REFMOE_UNFUSED)
        return REFMOE_BAD_PROFILE;
    if (narrow_item ? how->format < REFMOE_FLOAT32 || how->format > REFMOE_FP16 : how->format != REFMOE_FLOAT64)
        return REFMOE_BAD_FORMAT;
    int read = narrow_item && scaled && is_small(how->right_format);
    if (!is_operand_format(how->left_format, narrow_item))
        return REFMOE_BAD_FORMAT;
    if (!read && !is_operand_format(how->right_format, narrow_item))
        return REFMOE_BAD_FORMAT;
    if (how->force < 0 || how->force > (how->profile == REFMOE_EXACT ? REFMOE_FORCE_EXACT : REFMOE_FORCE_NOTHING))
        return REFMOE_BAD_FORCE;
    return REFMOE_OK;
}

static int check_offsets(int64_t experts, int64_t rows, const int64_t *offsets)
{
    if (!offsets)
        return REFMOE_BAD_POINTER;
    for (int64_t e = 0; e < experts; e++)
        if (offsets[e] > offsets[e + 1])
            return REFMOE_BAD_OFFSETS;
    return offsets[0] == 0 && offsets[experts] == rows ? REFMOE_OK : REFMOE_BAD_OFFSETS;
}

static int check(const refmoe_how *how, size_t item, int scaled, int64_t e, int64_t n, int64_t m, int64_t k,
                 const int64_t *offsets)
{
    int status = check_how(how, item, scaled);
    if (status)
        return status;
    if (!is_product_sane(e, m, k) || !is_product_sane(n, m, 1) || !is_product_sane(n, k, 1))
        return REFMOE_BAD_SIZE;
    return check_offsets(e, n, offsets);
}

/* Weights (E, M, K): an array of numbers, or codes with scales. */
static int check_weights(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k, const void *w,
                         struct codes *codes)
{
    if (is_small(how->right_format))
        return refmoe_describe_codes(w, how->right_format, e, m, k, n > 0, codes);
    return is_missing(w, n > 0 ? e * m * k : 0) ? REFMOE_BAD_POINTER : REFMOE_OK;
}

/* ---- the three products ---- */

static struct product describe(const refmoe_how *how, size_t item, int64_t e, int64_t rows, int64_t cols,
                               const int64_t *offsets, const void *acc, void *out)
{
    const struct kernel *kernel = refmoe_kernel(how->kernel);
    return (struct product){.kernel = kernel, .tile = &kernel->tile[how->profile], .profile = how->profile,
                            .format = how->format, .force = how->force, .threads = how->threads, .pairs = 1,
                            .item = item, .experts = e, .rows = rows, .cols = cols, .offsets = offsets,
                            .acc = acc, .out = out};
}

static void give_codes(struct product *p, int pair, const struct codes *codes)
{
    if (!is_small(p->pair[pair].b_format))
        return;
    p->codes[pair] = *codes;
    p->pair[pair].codes = &p->codes[pair];
    p->wide |= p->profile == REFMOE_CHAIN && codes->wide;
}

int refmoe_describe_forward(const refmoe_how *how, size_t item, int64_t e, int64_t n, int64_t m, int64_t k,
                            const int64_t *offsets, const void *x, const void *w, const void *bias, const void *acc,
                            void *out, struct product *p)
{
    struct codes codes;
    int status = check(how, item, 1, e, n, m, k, offsets);
    if (!status)
        status = check_weights(how, e, n, m, k, w, &codes);
    if (status)
        return status;
    if (is_missing(x, n * k) || is_missing(out, n * m))
        return REFMOE_BAD_POINTER;
    *p = describe(how, item, e, n, m, offsets, acc, out);
    p->pair[0] = (struct operand){.a = x, .b = w, .a_row = k, .a_step = 1, .b_step = 1, .b_col = k, .length = k,
                                  .a_format = how->left_format, .b_format = how->right_format};
    p->bias = bias;
    p->across = how->profile == REFMOE_UNFUSED ? 0 : REFMOE_LANES_ALONG;
    give_codes(p, 0, &codes);
    p->paired = refmoe_is_paired(p);
    p->doubles = refmoe_is_doubles(p);
    return REFMOE_OK;
}

static int forward(const refmoe_how *how, size_t item, int64_t e, int64_t n, int64_t m, int64_t k,
                   const int64_t *offsets, const void *x, const void *w, const void *bias, const void *acc, void *out,
                   refmoe_report *report)
{
    struct product p;
    int status = refmoe_describe_forward(how, item, e, n, m, k, offsets, x, w, bias, acc, out, &p);
    return status ? status : refmoe_run(&p, how->workspace, report);
}

static int backward_w(const refmoe_how *how, size_t item, int64_t e, int64_t n, int64_t m, int64_t k,
                      const int64_t *offsets, const void *d, const void *x, const void *acc, void *out,
                      refmoe_report *report)
{
    int status = check(how, item, 0, e, n, m, k, offsets);
    if (status)
        return status;
    if (is_missing(d, n * m) || is_missing(x, n * k) || is_missing(out, e * m * k))
        return REFMOE_BAD_POINTER;
    struct product p = describe(how, item, e, m, k, offsets, acc, out);
    p.pair[0] = (struct operand){.a = d, .b = x, .a_row = 1, .a_step = m, .b_step = k, .b_col = 1,
                                 .a_format = how->left_format, .b_format = how->right_format};
    p.sum_rows = 1;
    p.paired = refmoe_is_paired(&p);
    return refmoe_run(&p, how->workspace, report);
}

/* A pair without its element type. */
struct pair {
    const void *d, *w;
    int64_t m;
};

static int backward_x(const refmoe_how *how, size_t item, int64_t e, int64_t n, int64_t k, const int64_t *offsets,
                      int32_t num_pairs, const struct pair *pair, const void *acc, void *out, refmoe_report *report)
{
    struct codes codes[MAX_PAIRS];
    for (int q = 0; q < num_pairs; q++) {
        int status = check(how, item, 1, e, n, pair[q].m, k, offsets);
        if (!status)
            status = check_weights(how, e, n, pair[q].m, k, pair[q].w, &codes[q]);
        if (status)
            return status;
        if (is_missing(pair[q].d, n * pair[q].m))
            return REFMOE_BAD_POINTER;
    }
    if (is_missing(out, n * k))
        return REFMOE_BAD_POINTER;
    struct product p = describe(how, item, e, n, k, offsets, acc, out);
    p.pairs = 0; /* a pair of no terms adds none, and nobody could tell its rows by where they begin */
    p.across = how->profile == REFMOE_UNFUSED ? 0 : REFMOE_LANES_ACROSS;
    for (int q = 0; q < num_pairs; q++) {
        if (pair[q].m == 0 && (p.pairs > 0 || q + 1 < num_pairs))
            continue;
        p.pair[p.pairs] = (struct operand){.a = pair[q].d, .b = pair[q].w, .a_row = pair[q].m, .a_step = 1,
                                           .b_step = k, .b_col = 1, .length = pair[q].m,
                                           .a_format = how->left_format, .b_format = how->right_format};
        give_codes(&p, p.pairs++, &codes[q]);
    }
    p.paired = refmoe_is_paired(&p);
    return refmoe_run(&p, how->workspace, report);
}

int refmoe_grouped_matmul_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                              const int64_t *offsets, const void *x, const void *w, const float *bias,
                              const float *acc, float *out, refmoe_report *report)
{
    return forward(how, sizeof(float), e, n, m, k, offsets, x, w, bias, acc, out, report);
}

int refmoe_grouped_matmul_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                              const int64_t *offsets, const double *x, const double *w, const double *bias,
                              const double *acc, double *out)
{
    return forward(how, sizeof(double), e, n, m, k, offsets, x, w, bias, acc, out, NULL);
}

#define DEFINE_BACKWARD_X(pair_type, item, report)                                                                    \
    struct pair pair[MAX_PAIRS];                                                                                      \
    if (num_pairs < 1 || num_pairs > MAX_PAIRS)                                                                       \
        return REFMOE_BAD_SIZE;                                                                                       \
    for (int q = 0; q < num_pairs; q++)                                                                               \
        pair[q] = (struct pair){pairs[q].d, pairs[q].w, pairs[q].m};                                                  \
    return backward_x(how, item, e, n, k, offsets, num_pairs, pair, acc, out, report);

int refmoe_grouped_matmul_backward_x_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t k,
                                         const int64_t *offsets, int32_t num_pairs, const refmoe_pair_f32 *pairs,
                                         const float *acc, float *out, refmoe_report *report)
{
    DEFINE_BACKWARD_X(refmoe_pair_f32, sizeof(float), report)
}

int refmoe_grouped_matmul_backward_x_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t k,
                                         const int64_t *offsets, int32_t num_pairs, const refmoe_pair_f64 *pairs,
                                         const double *acc, double *out)
{
    DEFINE_BACKWARD_X(refmoe_pair_f64, sizeof(double), NULL)
}

int refmoe_grouped_matmul_backward_w_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                                         const int64_t *offsets, const void *d, const void *x, const float *acc,
                                         float *out, refmoe_report *report)
{
    return backward_w(how, sizeof(float), e, n, m, k, offsets, d, x, acc, out, report);
}

int refmoe_grouped_matmul_backward_w_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                                         const int64_t *offsets, const double *d, const double *x,
                                         const double *acc, double *out)
{
    return backward_w(how, sizeof(double), e, n, m, k, offsets, d, x, acc, out, NULL);
}
