/* panels.h: matrices as the tiles of the chain profile read them, and their products: attention.c. */

#ifndef REFMOE_PANELS_H
#define REFMOE_PANELS_H

#include "product.h"
#include "turn.h"

static inline int64_t whole_columns(const struct kernel *k, int64_t count)
{
    int64_t cols = k->tile[REFMOE_CHAIN].cols;
    return (count + cols - 1) / cols * cols;
}

/* ---- matrices ---- */

/* to[k, j] = x[k step + j] factor. */
static inline void copy(float *to, int64_t pitch, const float *x, int64_t step, int64_t length, int64_t count,
                        float factor)
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
static inline void lay(float *to, int64_t pitch, const float *x, int64_t step, int64_t col, int64_t length,
                       int64_t count, float factor)
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

static inline struct right lay_right(const struct kernel *kernel, float **room, const float *x, int64_t step,
                                     int64_t col, int64_t length, int64_t cols, float factor)
{
    const int64_t wide = kernel->tile[REFMOE_CHAIN].cols;
    struct right made = {*room, length, cols};
    if (cols % wide)
        memset(*room + cols / wide * wide * length, 0, (size_t)(wide * length) * sizeof **room);
    for (int64_t at = 0; at < cols; at += wide, *room += length * wide)
        lay(*room, wide, x + at * col, step, col, length, lower(wide, cols - at), factor);
    return made;
}

/* ---- products ---- */

/* Columns at .. at + the tile's of left times the rows of `right` from `first` on. */
static inline void multiply(const struct kernel *kernel, int rows, int64_t length, const float *left,
                            const struct right *right, int64_t first, int64_t at, float *made)
{
    const struct tile *tile = &kernel->tile[REFMOE_CHAIN];
    const float *panel = right->panel + at * right->length + first * tile->cols;
    float sum[MAX_TILE_ROWS * MAX_TILE_COLS] __attribute__((aligned(64)));
    if (tile->whole) {
        struct whole whole = {.a = left, .b = panel, .length = length, .ldb = tile->cols, .out_row = tile->cols,
                              .out = made, .panels = 1, .format = REFMOE_FLOAT32};
        tile->whole(rows, &whole, NULL);
        return;
    }
    memset(sum, 0, (size_t)(rows * tile->cols) * sizeof *sum);
    tile->multiply(rows, length, left, panel, tile->cols, sum);
    kernel->settle(rows, tile->cols, sum, NULL, NULL, REFMOE_FLOAT32, made);
}

/* out[i, j] = the product's, for the first `cols` columns. */
static inline void fill(const struct kernel *kernel, int rows, int64_t length, const float *left,
                        const struct right *right, int64_t cols, float *out, int64_t out_row)
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
static inline void append_zeros(float *sum, int64_t count, const float *x, int64_t step, int64_t length)
{
    for (int64_t j = 0; j < count; j++)
        for (int64_t k = 0; k < length && bits_of_float(sum[j]) == 0x80000000; k++)
            sum[j] += 0.0f * x[k * step + j];
}

static inline int has_minus_zero(const float *x, int64_t count)
{
    uint32_t found = 0;
    for (int64_t j = 0; j < count; j++)
        found |= bits_of_float(x[j]) == 0x80000000;
    return found != 0;
}

/* out[i, j] = factor times the product over rows first .. first + length of `right`; the rest of them meet +0. */
static inline void fill_scaled(const struct kernel *kernel, int rows, int64_t first, int64_t length, const float *left,
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

static inline int is_finite_block(const float *x, int64_t step, int64_t rows, int64_t cols)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < rows; i++, x += step)
        for (int64_t j = 0; j < cols; j++)
            bad |= (bits_of_float(x[j]) & 0x7F800000) == 0x7F800000;
    return !bad;
}

#endif
