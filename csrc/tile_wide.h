/* tile_wide.h: the part of the template (tile_template.h) for chains of weights that only doubles hold (fuse.h). */

#include "fuse.h"

/* One or two rows of weights: their chains wait for one another as little as registers allow. */
INLINE void wide_rows(const int rows, const int count, const int along, int64_t length, const double *left,
                      const float *right, float *acc)
{
    enum { PITCH = LEFT_PITCH / sizeof(double) };
    vd sum[2][4];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < count; v++)
            sum[i][v] = WIDEN(acc + i * 4 * LANES + v * LANES);
    for (int64_t k = 0; k < length; k++, right += count * LANES)
        for (int i = 0; i < rows; i++) {
            vd w = SPREAD64(along ? left[i * PITCH + k] : left[k * LANE_ROWS + i]);
            for (int v = 0; v < count; v++)
                sum[i][v] = fused_wide(w, WIDEN(right + v * LANES), sum[i][v]);
        }
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < count; v++)
            *(half_memory *)(acc + i * 4 * LANES + v * LANES) = NARROW(sum[i][v]);
}

#define WIDE_TILE(name, count, along)                                                                                 \
    static TARGET void name(int rows, int64_t length, const void *left_, const void *right, void *acc_,               \
                            const char *ahead, int64_t step)                                                         \
    {                                                                                                                 \
        const int64_t down = (along) ? LEFT_PITCH / (int64_t)sizeof(double) : 1;                                      \
        const double *left = left_;                                                                                   \
        float *acc = acc_;                                                                                            \
        for (int i = 0; i < rows; i += 2)                                                                             \
            if (i + 1 < rows)                                                                                         \
                wide_rows(2, count, along, length, left + i * down, right, acc + i * 4 * LANES);                      \
            else                                                                                                      \
                wide_rows(1, count, along, length, left + i * down, right, acc + i * 4 * LANES);                      \
        (void)ahead, (void)step;                                                                                      \
    }

WIDE_TILE(wide_4_along, 4, 1)
WIDE_TILE(wide_2_along, 2, 1)
WIDE_TILE(wide_4_across, 4, 0)
WIDE_TILE(wide_2_across, 2, 0)

#define WIDE_LANES                                                                                                    \
    {                                                                                                                 \
        LANE_ROWS, 2, {4 * LANES, 2 * LANES}, {wide_4_along, wide_2_along}, {wide_4_across, wide_2_across}            \
    }
