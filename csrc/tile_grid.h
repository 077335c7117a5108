/* tile_grid.h: the part of the template (tile_template.h) that looks at the grid of a row or column (grid.c). */

typedef int32_t vf_bits __attribute__((vector_size(8 * LANES)));

INLINE vf_bits lesser(vf_bits a, vf_bits b)
{
    vf_bits first = a < b;
    return (a & first) | (b & ~first);
}

/* The exponents of the lowest bits of numbers whose magnitudes have these bits; `none` for zeros. */
INLINE vf_bits lowest_bits(vf_bits size, int32_t none)
{
    vf_bits field = size >> 23, normal = field != 0, zero = size == 0;
    vf_bits significand = (size & 0x7FFFFF) | (normal & 0x800000);
    vf power = __builtin_convertvector(significand & -significand, vf);
    vf_bits exponent = ((vf_bits)power >> 23) - 127 + (field + 1 + normal) - 150;
    return (exponent & ~zero) | (zero & none);
}

/* Magnitudes are compared as integers, which order alike; a sum with NaN or infinity among them needs no grid. */
static TARGET int64_t span(int64_t count, const float *x, struct grid *grid)
{
    const int32_t none = grid->quantum;
    vf_bits least = (vf_bits){0} + none, most = {0};
    int64_t k = 0;
    for (; k + 2 * LANES <= count; k += 2 * LANES) {
        vf_bits size = (vf_bits)LOAD_F(x + k) & INT32_MAX;
        least = lesser(lowest_bits(size, none), least);
        most = -lesser(-size, -most);
    }
    for (int lane = 0; lane < 2 * LANES; lane++) {
        double size = float_of_bits((uint32_t)most[lane]);
        grid->quantum = least[lane] < grid->quantum ? least[lane] : grid->quantum;
        grid->largest = size > grid->largest ? size : grid->largest;
    }
    return k;
}
