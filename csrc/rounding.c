/* rounding.c: the `exact` profile after the float64 sum: rounding, norms for the rounding test, and the way through the
   tiers behind it (grid.c, compensated.c, accumulator.c). Each decides an output or hands it on; the last always
   decides. */

#include "tiers.h"

const struct format refmoe_formats[NUM_STORES] = {
    [REFMOE_FLOAT32] = {24, -126, 128, 0x1p-126, 0x1p128, 0x3p28},
    [REFMOE_BF16] = {8, -126, 128, 0x1p-126, 0x1p128, 0x3p44},
    [REFMOE_FP16] = {11, -14, 16, 0x1p-14, 0x1p16, 0x3p41},
};

float refmoe_canonical(float x) { return x == x ? x : float_of_bits(0x7FC00000u); }

/* Round to nearest, half to even, to a format: 3 * 2^51 quanta are added and taken away, so that float64's own rounding
   falls on the quantum of the result. Beyond the largest finite number: infinity. NaN: the canonical one. */
float refmoe_round(double x, int format)
{
    const struct format *f = &refmoe_formats[format];
    if (!is_finite(x))
        return refmoe_canonical((float)x);
    uint64_t bits = bits_of_double(x), sign = bits & (UINT64_C(1) << 63);
    double power = double_of_bits(bits & UINT64_C(0x7FF) << 52);
    double shift = (power < f->least_normal ? f->least_normal : power) * f->shift;
    double rounded = magnitude((x + shift) - shift);
    if (rounded >= f->overflow)
        rounded = double_of_bits(UINT64_C(0x7FF) << 52);
    return (float)double_of_bits(bits_of_double(rounded) | sign);
}

/* An upper bound of sqrt(squares), 0 for 0, non-finite for a non-finite argument. One Newton step lands at or above the
   root from any positive start (the mean inequality); the factor covers the roundings here and in the sum of squares,
   which err by at most 2^-53 of it a term. */
double refmoe_norm_above(double squares)
{
    if (squares == 0 || !is_finite(squares))
        return squares;
    double guess = double_of_bits((bits_of_double(squares) >> 1) + (UINT64_C(1023) << 51));
    return 0.5 * (guess + squares / guess) * (1 + 0x1p-30);
}

/* An output the rounding test left open, or one that was sent here by force. */
float refmoe_resolve(const struct terms *terms, double value, const struct grid *row, const struct grid *col,
                     int format, int force, refmoe_report *report)
{
    float out;
    if (force == REFMOE_FORCE_NOTHING && !is_finite(value)) {
        report->rounding_test++; /* an infinite or NaN sum came from such an operand and is the answer */
        return refmoe_canonical((float)value);
    }
    if (force == REFMOE_FORCE_NOTHING && refmoe_on_grid(terms, row, col)) {
        report->grid++;
        return refmoe_round(value, format);
    }
    if (force != REFMOE_FORCE_EXACT && refmoe_compensated(terms, format, &out)) {
        report->compensated++;
        return out;
    }
    report->exact++;
    return refmoe_accumulate(terms, format);
}
