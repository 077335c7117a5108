/* codes.c: weights as codes and scales: what may be given, and any of their numbers, one after the other. */

#include "codes.h"

const struct small refmoe_small[REFMOE_E8M0] = {
    [REFMOE_E5M2] = {8, 0, 2, 0x1p112f, 0x7C, 0x7D, 57344},  [REFMOE_E4M3] = {8, 0, 3, 0x1p120f, 256, 0x7F, 448},
    [REFMOE_E3M2] = {6, 0, 2, 0x1p124f, 256, 256, 28},       [REFMOE_E2M3] = {6, 0, 3, 0x1p126f, 256, 256, 7.5},
    [REFMOE_E2M1] = {4, 0, 1, 0x1p126f, 256, 256, 6},        [REFMOE_INT8] = {8, 1, 0, 0, 256, 256, 128},
    [REFMOE_INT4] = {4, 1, 0, 0, 256, 256, 8},
};

/* ---- scales ---- */

static float given_scale(const struct codes *c, int64_t at)
{
    int format = c->given.scale_format;
    if (format == REFMOE_E8M0)
        return float_of_power(((const uint8_t *)c->given.scales)[at]);
    if (format == REFMOE_E4M3)
        return float_of_small(&refmoe_small[REFMOE_E4M3], ((const uint8_t *)c->given.scales)[at]);
    return number_at(c->given.scales, format, at);
}

double refmoe_scale_at(const struct codes *c, int64_t expert, int64_t row, int64_t block)
{
    double tensor = c->given.tensor_scales ? c->given.tensor_scales[expert] : 1.0;
    int64_t at = (expert * c->scale_rows + (c->scale_rows ? row / c->given.block_rows : 0)) * c->scale_cols + block;
    return c->given.scales ? given_scale(c, at) * tensor : tensor;
}

/* ---- what may be given ---- */

static int is_scale_format(int format, int beside_tensor)
{
    return format == REFMOE_E8M0 || format == REFMOE_E4M3 || format == REFMOE_BF16 || format == REFMOE_FP16
           || (format == REFMOE_FLOAT32 && !beside_tensor);
}

/* A chain needs doubles for any scale but a power of two, and for a power whose products float32 may not hold. (Small
   ones it does hold: 2^-127 times the least number of any format is a subnormal.) */
static void see_scales(struct codes *c, int64_t experts)
{
    uint8_t most = 0; /* of codes plus 1, where the NaN is the least */
    c->wide = c->given.tensor_scales || (c->given.scales && c->given.scale_format != REFMOE_E8M0);
    if (c->wide)
        return;
    for (int64_t i = 0; c->given.scales && i < experts * c->scale_rows * c->scale_cols; i++) {
        uint8_t next = (uint8_t)(((const uint8_t *)c->given.scales)[i] + 1);
        most = next > most ? next : most;
    }
    c->wide = (double)float_of_power(most > 0 ? most - 1u : 0) * c->small->largest > FLT_MAX;
}

static int64_t parts(int64_t count, int64_t size) { return count / size + (count % size != 0); }

int refmoe_describe_codes(const refmoe_scaled *given, int format, int64_t experts, int64_t rows, int64_t cols, int used,
                          struct codes *c)
{
    if (!given)
        return REFMOE_BAD_POINTER;
    *c = (struct codes){.given = *given, .small = &refmoe_small[format], .rows = rows, .cols = cols};
    c->pitch = c->small->bits == 4 ? parts(cols, 2) : cols;
    if (given->scales) {
        if (given->block_rows < 1 || given->block_cols < 1
            || !is_scale_format(given->scale_format, given->tensor_scales != NULL))
            return REFMOE_BAD_SCALES;
        c->scale_rows = parts(rows, given->block_rows), c->scale_cols = parts(cols, given->block_cols);
    }
    if (!used || experts * rows * cols == 0)
        return REFMOE_OK;
    if (!given->codes)
        return REFMOE_BAD_POINTER;
    see_scales(c, experts);
    return REFMOE_OK;
}

/* ---- any numbers ---- */

void refmoe_decode_codes(const struct codes *c, int64_t expert, int64_t row, int64_t col, int64_t count, int down,
                         double *to)
{
    int64_t held = -1, held_row = -1;
    double scale = 1.0;
    for (int64_t i = 0; i < count; i++) {
        int64_t r = down ? row + i : row, k = down ? col : col + i;
        int64_t block = c->given.scales ? k / c->given.block_cols : 0;
        if (block != held || r != held_row)
            scale = refmoe_scale_at(c, expert, r, block), held = block, held_row = r;
        to[i] = (double)code_at(c, row_of_codes(c, expert, r), k) * scale;
    }
}

/* ---- one step of a chain ---- */

/* Both products are exact; the second one, of the weight's last bits, is far below the first. */
float refmoe_fused_wide(float x, double w, float c)
{
    double high = high_part(w), first = (double)x * high, rest = (double)x * (w - high), sum, error, more, last;
    if (first == 0 || !is_finite(first + (double)c))
        return (float)(first + (double)c);
    sum = two_sum(first, (double)c, &error);
    error = two_sum(error, rest, &more);
    sum = two_sum(sum, error, &last);
    return (float)round_to_odd(sum, last + more);
}
