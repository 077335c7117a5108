/* tile_direct.h: the part of the template (tile_template.h) that reads float32 weights where they lie: the tiles of
   lanes.c (struct direct_run says what they do), from a chain's start to its end without a copy. */

/* Weights of a line of the cache, and how many before its use one is fetched. */
enum { DIRECT_LINE = 16, DIRECT_AHEAD = 64 };

/* Rows are reached from every third one, so that their addresses fit the registers. */
#define WEIGHT(i) (*(const float *)(w[(i) / 3] + (i) % 3 * run->step))

#define DIRECT_LOOPS(name, vector, count, fma, spread)                                                                \
    INLINE void name##_rows(const int rows, const struct direct_run *run)                                             \
    {                                                                                                                 \
        typedef float memory __attribute__((vector_size(sizeof(vector)), aligned(sizeof(float)), may_alias));         \
        enum { LANE = sizeof(vector) / sizeof(float) };                                                               \
        const float *right = run->right, *from = run->from;                                                           \
        const char *w[(LANE_ROWS + 2) / 3], *ahead = run->w + DIRECT_AHEAD * sizeof(float);                           \
        vector sum[LANE_ROWS][count];                                                                                 \
        EACH_INDEX for (int i = 0; i < rows; i += 3)                                                                  \
            w[i / 3] = run->w + i * run->step;                                                                        \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = from ? (vector) * (const memory *)(from + i * run->pitch + v * LANE) : (vector){0};       \
        for (int64_t k = 0; k < run->length; ahead += DIRECT_LINE * sizeof(float)) {                                  \
            const int64_t end = k + DIRECT_LINE < run->length ? k + DIRECT_LINE : run->length;                        \
            if (k + DIRECT_AHEAD >= run->length && k + DIRECT_AHEAD < run->length + DIRECT_LINE)                      \
                ahead = run->ahead;                                                                                   \
            EACH_INDEX for (int i = 0; i < rows; i++)                                                                 \
                __builtin_prefetch(ahead + i * run->step, 0, 3);                                                      \
            for (; k < end; k++, right += LANE * count) {                                                             \
                vector x[count];                                                                                      \
                EACH_INDEX for (int v = 0; v < count; v++)                                                            \
                    x[v] = (vector) * (const memory *)(right + v * LANE);                                             \
                EACH_INDEX for (int i = 0; i < rows; i++) {                                                           \
                    vector weight = spread(WEIGHT(i));                                                                \
                    EACH_INDEX for (int v = 0; v < count; v++)                                                        \
                        sum[i][v] = fma(weight, x[v], sum[i][v]);                                                     \
                }                                                                                                     \
                EACH_INDEX for (int i = 0; i < rows; i += 3)                                                          \
                    w[i / 3] += sizeof(float);                                                                        \
            }                                                                                                         \
        }                                                                                                             \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                *(memory *)(run->to + i * run->pitch + v * LANE) = (memory)sum[i][v];                                 \
    }                                                                                                                 \
    LANE_FUNCTION(name, direct_run)

/* Of the shapes those of chains. */
#define DIRECT_OF_float(name, ...) DIRECT_LOOPS(name##_direct, __VA_ARGS__)
#define DIRECT_OF_double(name, ...)
#undef LANE_TILE
#define LANE_TILE(name, scalar, ...) DIRECT_OF_##scalar(name, __VA_ARGS__)

LANE_SHAPES
