/* tile_reading.h: the part of the template (tile_template.h) that reads weights and activations in their formats:
   copies for the tiles of lanes.c, and codes of 16 bits widened to float32, which holds every number of both
   formats. */

typedef uint16_t codes __attribute__((vector_size(4 * LANES)));
typedef uint16_t codes_memory __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint32_t wide_codes __attribute__((vector_size(8 * LANES)));

INLINE vf floats_bf16(const uint16_t *p)
{
    return (vf)(__builtin_convertvector((codes) * (const codes_memory *)p, wide_codes) << 16);
}

INLINE half halves_bf16(const uint16_t *p)
{
    typedef uint16_t few __attribute__((vector_size(2 * LANES)));
    typedef uint16_t few_memory __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
    typedef uint32_t wide_few __attribute__((vector_size(4 * LANES)));
    return (half)(__builtin_convertvector((few) * (const few_memory *)p, wide_few) << 16);
}

INLINE vd doubles_bf16(const uint16_t *p) { return __builtin_convertvector(halves_bf16(p), vd); }

#define LOAD_H(p) ((half) * (const half_memory *)(p))
#define HALVES_FP16(p) NARROW(DOUBLES_FP16(p))

enum { FEW_LINES = 8 }; /* which the first cache holds even if all belong to the same place of it */

INLINE vi lane_numbers(void)
{
    vi lanes;
    for (int lane = 0; lane < LANES; lane++)
        lanes[lane] = lane;
    return lanes;
}

/* Panels of which squares fit the registers; k fetched before they are copied. */
enum { PANELS_TOGETHER = 4, PANEL_AHEAD = 8 };

/* For a format: floats(p) is a vector of them, halves(p) half of one, doubles(p) LANES of them as doubles, number(code)
   one. A band that is not a whole number of vectors ends with one that begins inside the vector before it. */
#define READING(form, item, floats, halves, doubles, number)                                                          \
    static TARGET void copy_along_chain_##form(int rows, int64_t length, const void *weights, int64_t step,           \
                                               void *left, double *squares)                                           \
    {                                                                                                                 \
        const item *w = weights;                                                                                      \
        for (int i = 0; i < rows; i++, w += step) {                                                                   \
            float *to = (float *)((char *)left + i * LEFT_PITCH);                                                     \
            int64_t k = 0;                                                                                            \
            for (; k + 2 * LANES <= length; k += 2 * LANES)                                                           \
                *(vf_memory *)(to + k) = floats(w + k);                                                               \
            for (; k < length; k++)                                                                                   \
                to[k] = number(w[k]);                                                                                 \
        }                                                                                                             \
        (void)squares;                                                                                                \
    }                                                                                                                 \
    static TARGET void copy_along_exact_##form(int rows, int64_t length, const void *weights, int64_t step,           \
                                               void *left, double *squares)                                           \
    {                                                                                                                 \
        const item *w = weights;                                                                                      \
        for (int i = 0; i < rows; i++, w += step) {                                                                   \
            double *to = (double *)((char *)left + i * LEFT_PITCH);                                                   \
            int64_t k = 0;                                                                                            \
            vd sum = {0};                                                                                             \
            for (; k + LANES <= length; k += LANES) {                                                                 \
                vd x = doubles(w + k);                                                                                \
                *(vd_memory *)(to + k) = x;                                                                           \
                sum = FMA64(x, x, sum);                                                                               \
            }                                                                                                         \
            for (int lane = 0; lane < LANES; lane++)                                                                  \
                squares[i] += sum[lane];                                                                              \
            for (; k < length; k++) {                                                                                 \
                to[k] = (double)number(w[k]);                                                                         \
                squares[i] += to[k] * to[k];                                                                          \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    /* Column after column, in bands of LANE_ROWS; a band is (length, LANE_ROWS). */                                  \
    static TARGET void copy_across_chain_##form(int cols, int64_t length, const void *weights, int64_t step,          \
                                                void *left, double *squares)                                          \
    {                                                                                                                 \
        enum { LANE = 2 * LANES <= LANE_ROWS ? 2 * LANES : LANES, LAST = LANE_ROWS - LANE };                          \
        const item *w = weights;                                                                                      \
        for (int64_t k = 0; k < length; k++, w += step)                                                               \
            for (int j = 0; j < cols; j += LANE_ROWS) {                                                               \
                float *to = (float *)left + j * length + k * LANE_ROWS;                                               \
                if (j + LANE_ROWS > cols) {                                                                           \
                    for (int i = 0; i < cols - j; i++)                                                                \
                        to[i] = number(w[j + i]);                                                                     \
                    continue;                                                                                         \
                }                                                                                                     \
                for (int i = 0; i < LANE_ROWS; i += LANE) {                                                           \
                    int at = i < LAST ? i : LAST;                                                                     \
                    if (LANE == LANES)                                                                                \
                        *(half_memory *)(to + at) = halves(w + j + at);                                               \
                    else                                                                                              \
                        *(vf_memory *)(to + at) = floats(w + j + at);                                                 \
                }                                                                                                     \
            }                                                                                                         \
        (void)squares;                                                                                                \
    }                                                                                                                 \
    INLINE void copy_band_##form(int64_t length, const item *w, int64_t step, double *to, double *squares)            \
    {                                                                                                                 \
        enum { VECTORS = (LANE_ROWS + LANES - 1) / LANES, LAST = LANE_ROWS - LANES };                                 \
        vd sum[VECTORS];                                                                                              \
        for (int v = 0; v < VECTORS; v++)                                                                             \
            sum[v] = LOAD_D(squares + (v * LANES < LAST ? v * LANES : LAST));                                         \
        for (int64_t k = 0; k < length; k++, w += step, to += LANE_ROWS)                                              \
            for (int v = 0; v < VECTORS; v++) {                                                                       \
                int at = v * LANES < LAST ? v * LANES : LAST;                                                         \
                vd x = doubles(w + at);                                                                               \
                vi fresh = lane_numbers() >= v * LANES - at;                                                          \
                *(vd_memory *)(to + at) = x;                                                                          \
                sum[v] += (vd)((vi)(x * x) & fresh);                                                                  \
            }                                                                                                         \
        for (int v = VECTORS - 1; v >= 0; v--)                                                                        \
            *(vd_memory *)(squares + (v * LANES < LAST ? v * LANES : LAST)) = sum[v];                                 \
    }                                                                                                                 \
    static TARGET void copy_across_exact_##form(int cols, int64_t length, const void *weights, int64_t step,          \
                                                void *left, double *squares)                                          \
    {                                                                                                                 \
        for (int64_t from = 0; from < length; from += FEW_LINES)                                                      \
            for (int j = 0; j < cols; j += LANE_ROWS) {                                                               \
                int64_t lines = from + FEW_LINES < length ? FEW_LINES : length - from;                                \
                const item *w = (const item *)weights + from * step + j;                                              \
                double *to = (double *)left + j * length + from * LANE_ROWS;                                          \
                if (j + LANE_ROWS <= cols)                                                                            \
                    copy_band_##form(lines, w, step, to, squares + j);                                                \
                else                                                                                                  \
                    for (int64_t k = 0; k < lines; k++)                                                               \
                        for (int i = 0; i < cols - j; i++) {                                                          \
                            double x = (double)number(w[k * step + i]);                                               \
                            to[k * LANE_ROWS + i] = x;                                                                \
                            squares[j + i] += x * x;                                                                  \
                        }                                                                                             \
            }                                                                                                         \
    }                                                                                                                 \
    static TARGET void copy_panels_chain_##form(int count, int64_t length, const void *weights, int64_t step,         \
                                                void *right, int64_t apart, double *squares)                          \
    {                                                                                                                 \
        const item *w = weights;                                                                                      \
        char *to = right;                                                                                             \
        for (int64_t k = 0; k < length; k++, w += step, to += 16 * LANES)                                             \
            for (int c = 0; c < count; c++) {                                                                         \
                __builtin_prefetch(w + PANEL_AHEAD * step + c * 4 * LANES, 0, 2);                                     \
                __builtin_prefetch(w + PANEL_AHEAD * step + c * 4 * LANES + 2 * LANES, 0, 2);                         \
                *(vf_memory *)(to + c * apart) = floats(w + c * 4 * LANES);                                           \
                *(vf_memory *)(to + c * apart + 8 * LANES) = floats(w + c * 4 * LANES + 2 * LANES);                   \
            }                                                                                                         \
        (void)squares;                                                                                                \
    }                                                                                                                 \
    INLINE void copy_some_exact_##form(const int count, int64_t length, const item *w, int64_t step, char *to,        \
                                       int64_t apart, double *squares)                                                \
    {                                                                                                                 \
        vd sum[2 * PANELS_TOGETHER];                                                                                  \
        for (int c = 0; c < 2 * count; c++)                                                                           \
            sum[c] = LOAD_D(squares + c * LANES);                                                                     \
        for (int64_t k = 0; k < length; k++, w += step, to += 16 * LANES)                                             \
            for (int c = 0; c < 2 * count; c++) {                                                                     \
                vd x = doubles(w + c * LANES);                                                                        \
                if (c % 2 == 0)                                                                                       \
                    __builtin_prefetch(w + PANEL_AHEAD * step + c * LANES, 0, 2);                                     \
                *(vd_memory *)(to + c / 2 * apart + c % 2 * 8 * LANES) = x;                                           \
                sum[c] = FMA64(x, x, sum[c]);                                                                         \
            }                                                                                                         \
        for (int c = 0; c < 2 * count; c++)                                                                           \
            *(vd_memory *)(squares + c * LANES) = sum[c];                                                             \
    }                                                                                                                 \
    static TARGET void copy_panels_exact_##form(int count, int64_t length, const void *weights, int64_t step,         \
                                                void *right, int64_t apart, double *squares)                          \
    {                                                                                                                 \
        int c = 0;                                                                                                    \
        for (; c + PANELS_TOGETHER <= count; c += PANELS_TOGETHER)                                                    \
            copy_some_exact_##form(PANELS_TOGETHER, length, (const item *)weights + c * 2 * LANES, step,              \
                                   (char *)right + c * apart, apart, squares + c * 2 * LANES);                        \
        for (; c < count; c++)                                                                                        \
            copy_some_exact_##form(1, length, (const item *)weights + c * 2 * LANES, step,                            \
                                   (char *)right + c * apart, apart, squares + c * 2 * LANES);                        \
    }                                                                                                                 \
    static TARGET void widen_##form(int64_t count, const void *from_, float *to)                                      \
    {                                                                                                                 \
        const item *from = from_;                                                                                     \
        int64_t k = 0;                                                                                                \
        for (; k + 2 * LANES <= count; k += 2 * LANES)                                                                \
            *(vf_memory *)(to + k) = floats(from + k);                                                                \
        for (; k < count; k++)                                                                                        \
            to[k] = number(from[k]);                                                                                  \
    }

READING(float32, float, LOAD_F, LOAD_H, WIDEN, ITSELF)
READING(bf16, uint16_t, floats_bf16, halves_bf16, doubles_bf16, float_of_bf16)
READING(fp16, uint16_t, FLOATS_FP16, HALVES_FP16, DOUBLES_FP16, float_of_fp16)

#define VECTOR_COPIES                                                                                                 \
    .copy_along = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_along_exact),                                                 \
                   [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_along_chain)},                                                \
    .copy_across = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_across_exact),                                               \
                    [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_across_chain)},                                              \
    .copy_panels = {[REFMOE_EXACT] = OF_EACH_FORMAT(copy_panels_exact),                                               \
                    [REFMOE_CHAIN] = OF_EACH_FORMAT(copy_panels_chain)},                                              \
    .copy_codes = copy_codes, .widen = OF_EACH_FORMAT(widen), .norms = norms, .grow = grow
