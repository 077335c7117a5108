/* tile_wide.h: the part of the template (tile_template.h) for chains of weights that only doubles hold (fuse.h). */

#include "fuse.h"

/* One or two rows of weights: their chains wait for one another as little as registers allow. */
INLINE void wide_rows(const int rows, const int count, const int along, const struct lane_run *run, const int first)
{
    enum { PITCH = LEFT_PITCH / sizeof(double) };
    const double *left = (const double *)run->left + first * (along ? PITCH : 1);
    const float *right = run->right, *from = run->from;
    float *to = (float *)run->to + first * run->to_row;
    vd sum[2][4];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < count; v++)
            sum[i][v] = from ? WIDEN(from + (first + i) * run->from_row + v * LANES) : (vd){0};
    for (int64_t k = 0; k < run->length; k++, right += run->right_step)
        for (int i = 0; i < rows; i++) {
            vd w = SPREAD64(along ? left[i * PITCH + k] : left[k * LANE_ROWS + i]);
            for (int v = 0; v < count; v++)
                sum[i][v] = fused_wide(w, WIDEN(right + v * LANES), sum[i][v]);
        }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < count; v++)
            *(half_memory *)(to + i * run->to_row + v * LANES) = NARROW(sum[i][v]);
}

#define WIDE_TILE(name, count, along)                                                                                 \
    static TARGET void name(int rows, const struct lane_run *run)                                                     \
    {                                                                                                                 \
        for (int i = 0; i < rows; i += 2)                                                                             \
            if (i + 1 < rows)                                                                                         \
                wide_rows(2, count, along, run, i);                                                                   \
            else                                                                                                      \
                wide_rows(1, count, along, run, i);                                                                   \
    }

WIDE_TILE(wide_4_along, 4, 1)
WIDE_TILE(wide_2_along, 2, 1)
WIDE_TILE(wide_4_across, 4, 0)
WIDE_TILE(wide_2_across, 2, 0)

#define WIDE_LANES                                                                                                    \
    {                                                                                                                 \
        LANE_ROWS, 2, {4 * LANES, 2 * LANES}, {wide_4_along, wide_2_along}, {wide_4_across, wide_2_across}            \
    }
