/* accumulator.c: the last tier of the exact profile: an integer of 960 bits in two's complement, in units of 2^-480. */

#include "tiers.h"

/* Products of float32 are multiples of 2^-298 below 2^256; a code with two scales may take 2^-182 more, and 2^144. */
enum { LIMBS = 30, UNIT = 480 };

static void decompose(float x, uint64_t *significand, int *exponent)
{
    uint32_t bits = bits_of_float(x), field = bits >> 23 & 0xFF;
    *significand = field ? (bits & 0x7FFFFF) | 0x800000 : bits & 0x7FFFFF;
    *exponent = (int)(field ? field : 1) - 150;
}

/* Of a double of at most 29 bits, zero or above 2^-1022. */
static void decompose_part(double x, uint64_t *significand, int *exponent)
{
    uint64_t bits = bits_of_double(x);
    *significand = magnitude(x) == 0 ? 0 : (bits >> 24 & 0xFFFFFFF) | 0x10000000;
    *exponent = *significand ? (int)(bits >> 52 & 0x7FF) - 1075 + 24 : 0;
}

static void add_product(uint32_t *limb, float a, double b)
{
    uint64_t ma, mb;
    int ea, eb;
    decompose(a, &ma, &ea);
    decompose_part(b, &mb, &eb);
    if (ma == 0 || mb == 0)
        return;
    int zeros = __builtin_ctzll(mb); /* whose places may be below the accumulator's unit */
    mb >>= zeros, eb += zeros;
    int shift = ea + eb + UNIT, at = shift / 32, negative = (bits_of_float(a) >> 31) ^ (int)(bits_of_double(b) >> 63);
    uint64_t low = (ma * mb & UINT32_MAX) << shift % 32, high = (ma * mb >> 32) << shift % 32;
    const int64_t part[3] = {low & UINT32_MAX, (int64_t)((low >> 32) + (high & UINT32_MAX)), (int64_t)(high >> 32)};
    int64_t carry = 0;
    for (int i = 0; at + i < LIMBS && (i < 3 || carry); i++) {
        int64_t add = i < 3 ? part[i] : 0;
        carry += (int64_t)limb[at + i] + (negative ? -add : add);
        limb[at + i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static void negate(uint32_t *limb)
{
    uint64_t carry = 1;
    for (int i = 0; i < LIMBS; i++) {
        carry += (uint32_t)~limb[i];
        limb[i] = (uint32_t)carry;
        carry >>= 32;
    }
}

static int bit_at(const uint32_t *limb, int at) { return at >= 0 && (limb[at / 32] >> at % 32 & 1); }

static int top_bit(const uint32_t *limb)
{
    int at = 32 * LIMBS - 1;
    while (at >= 0 && !bit_at(limb, at))
        at--;
    return at;
}

/* Round the integer to a format, half to even, by looking at its bits. */
static float round_limbs(uint32_t *limb, int format)
{
    const struct format *f = &refmoe_formats[format];
    int negative = limb[LIMBS - 1] >> 31, sticky = 0;
    if (negative)
        negate(limb);
    int top = top_bit(limb), normal = top - UNIT > f->least ? top - UNIT : f->least;
    int quantum = normal - f->precision + 1, last = quantum + UNIT;
    if (top < 0)
        return 0.0f;
    uint64_t kept = 0;
    for (int at = top; at >= last; at--)
        kept = 2 * kept + (uint64_t)bit_at(limb, at);
    for (int at = last - 2; at >= 0 && !sticky; at--)
        sticky = bit_at(limb, at);
    kept += bit_at(limb, last - 1) && (sticky || (kept & 1));
    double value = (double)kept * power_of_two(quantum);
    return refmoe_round(negative ? -value : value, format);
}

static int nonfinite(const struct terms *terms, float *out)
{
    double special = 0.0;
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        for (int64_t k = 0; k < v->length; k++) {
            double product = (double)left_of(v, k) * right_of(v, k);
            if (!is_finite(product))
                special += product;
        }
    }
    if (terms->acc && !is_finite(*terms->acc))
        special += *terms->acc;
    if (terms->bias && !is_finite(*terms->bias))
        special += *terms->bias;
    *out = refmoe_canonical((float)special);
    return !is_finite(special);
}

float refmoe_accumulate(const struct terms *terms, int format)
{
    uint32_t limb[LIMBS] = {0};
    float out;
    if (nonfinite(terms, &out))
        return out;
    for (int p = 0; p < terms->pairs; p++) {
        const struct vector_pair *v = &terms->pair[p];
        for (int64_t k = 0; k < v->length; k++) {
            double right = right_of(v, k);
            add_product(limb, left_of(v, k), high_part(right));
            add_product(limb, left_of(v, k), right - high_part(right));
        }
    }
    if (terms->acc)
        add_product(limb, *terms->acc, 1.0);
    if (terms->bias)
        add_product(limb, *terms->bias, 1.0);
    return round_limbs(limb, format);
}
