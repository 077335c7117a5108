/* codes.h: weights as codes of 8 bits and less with scales: where they lie, and the numbers they stand for. */

#ifndef REFMOE_CODES_H
#define REFMOE_CODES_H

#include "tile.h"

/* How a code is read: an integer in two's complement, or sign, exponent and `fraction` bits from the highest bit down.
   With the bits below the sign where a float32 has its own, a code is its number divided by `power`. */
struct small {
    int bits, integer, fraction;
    float power;
    uint32_t infinite, none; /* codes without their sign: infinity, and the first that is NaN; 256: there is none */
    float largest;           /* magnitude, of finite numbers */
};

extern const struct small refmoe_small[REFMOE_E8M0];

/* The weights of a product: matrices of `rows` x `cols` codes. `wide`: products of code and scale that float32 does not
   hold, so that a chain of them takes doubles. */
struct codes {
    refmoe_scaled given;
    const struct small *small;
    int64_t rows, cols, pitch; /* pitch: bytes from a row to the next */
    int64_t scale_rows, scale_cols;
    int wide;
};

/* REFMOE_OK, or what is wrong with weights of a format for E experts, `used`: their values are needed. */
int refmoe_describe_codes(const refmoe_scaled *given, int format, int64_t experts, int64_t rows, int64_t cols, int used,
                          struct codes *codes);

/* The numbers of `count` weights from (row, col) on to the right, or, `down`, below one another. */
void refmoe_decode_codes(const struct codes *codes, int64_t expert, int64_t row, int64_t col, int64_t count, int down,
                         double *to);

/* What one call of a kernel's copy_codes reads. Along: `count` rows of the matrix from `row` on, `length` columns from
   `col` on; across: the other way round. As doubles, or as floats where these hold the products. */
struct codes_run {
    const struct codes *codes;
    int64_t expert, row, col, length;
    int count, along, doubles;
};

static inline int is_small(int format) { return format >= REFMOE_E5M2 && format <= REFMOE_INT4; }

static inline float float_of_small(const struct small *s, uint32_t code)
{
    uint32_t half = UINT32_C(1) << (s->bits - 1), size = code & (half - 1);
    if (s->integer)
        return (float)((int32_t)size - (int32_t)(code & half));
    float number = float_of_bits(size << (23 - s->fraction)) * s->power;
    if (size >= s->none)
        return float_of_bits(0x7FC00000);
    if (size == s->infinite)
        number = float_of_bits(0x7F800000);
    return code & half ? -number : number;
}

static inline int64_t scale_bytes(int format)
{
    return format == REFMOE_FLOAT32 ? 4 : format == REFMOE_BF16 || format == REFMOE_FP16 ? 2 : 1;
}

/* 2^(code - 127); the least of them is a subnormal float32, the code of all ones is NaN. */
static inline float float_of_power(uint32_t code)
{
    return float_of_bits(code == 255 ? 0x7FC00000 : code ? code << 23 : 0x00400000);
}

static inline const uint8_t *row_of_codes(const struct codes *c, int64_t expert, int64_t row)
{
    return (const uint8_t *)c->given.codes + (expert * c->rows + row) * c->pitch;
}

static inline float code_at(const struct codes *c, const uint8_t *row, int64_t col)
{
    uint32_t code = c->small->bits == 4 ? row[col / 2] >> col % 2 * 4 & 15 : row[col];
    return float_of_small(c->small, code);
}

/* The scale of a block, that of the tensor included: a double holds it. */
double refmoe_scale_at(const struct codes *codes, int64_t expert, int64_t row, int64_t block);

#endif
