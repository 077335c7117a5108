/* tile_lanes.h: the part of the template (tile_template.h) that spreads copied left factors over vectors: the tiles of
   lanes.c and outputs.c (struct lane_run says what they do). */

#define ALONG(i, k) left[(i) * PITCH + (k)]
#define ACROSS(i, k) left[(k) * LANE_ROWS + (i)]

/* `rows` is known to the compiler where it counts. */
#define LANE_CASE(name, count)                                                                                        \
    case count:                                                                                                       \
        name##_rows(count <= most ? count : most, run);                                                               \
        return;
#define LANE_FUNCTION(name, most_rows, run_struct)                                                                    \
    static TARGET void name(int rows, const struct run_struct *run)                                                   \
    {                                                                                                                 \
        enum { most = most_rows };                                                                                    \
        switch (rows) {                                                                                               \
            LANE_CASE(name, 1) LANE_CASE(name, 2) LANE_CASE(name, 3) LANE_CASE(name, 4) LANE_CASE(name, 5)            \
            LANE_CASE(name, 6) LANE_CASE(name, 7) LANE_CASE(name, 8) LANE_CASE(name, 9) LANE_CASE(name, 10)           \
            LANE_CASE(name, 11) LANE_CASE(name, 12)                                                                   \
        }                                                                                                             \
    }

/* `count` vectors of `scalar` a row. One line of what comes next is fetched each step. */
#define LANE_LOOPS(name, at, scalar, vector, count, fma, spread)                                                      \
    INLINE void name##_rows(const int rows, const struct lane_run *run)                                               \
    {                                                                                                                 \
        typedef scalar memory __attribute__((vector_size(sizeof(vector)), aligned(sizeof(scalar)), may_alias));       \
        typedef int32_t bits __attribute__((vector_size(sizeof(vector))));                                            \
        enum { LANE = sizeof(vector) / sizeof(scalar), PITCH = LEFT_PITCH / sizeof(scalar) };                         \
        const scalar *left = run->left, *right = run->right, *from = run->from;                                       \
        scalar *to = run->to;                                                                                         \
        vector sum[LANE_ROWS][count];                                                                                 \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = from ? (vector) * (const memory *)(from + i * run->from_row + v * LANE) : (vector){0};    \
        for (int64_t k = 0, row = 0; k < run->length; row += row + 1 < run->ahead_rows) {                             \
            const char *line = run->ahead + row * run->step;                                                          \
            const int64_t end = k + run->lines < run->length ? k + run->lines : run->length;                          \
            for (; k < end; k++, line += 64, right += run->right_step) {                                              \
                vector x[count];                                                                                      \
                __builtin_prefetch(line, 0, 3);                                                                       \
                for (int v = 0; v < count; v++)                                                                       \
                    x[v] = (vector) * (const memory *)(right + v * LANE);                                             \
                EACH_INDEX for (int i = 0; i < rows; i++) {                                                           \
                    vector w = spread(at(i, k));                                                                      \
                    EACH_INDEX for (int v = 0; v < count; v++)                                                        \
                        sum[i][v] = fma(w, x[v], sum[i][v]);                                                          \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
        if (run->bias)                                                                                                \
            EACH_INDEX for (int i = 0; i < rows; i++)                                                                 \
                EACH_INDEX for (int v = 0; v < count; v++)                                                            \
                    sum[i][v] = sum[i][v] + (vector) * (const memory *)(run->bias + v * LANE);                        \
        if (run->ends)                                                                                                \
            EACH_INDEX for (int i = 0; i < rows; i++)                                                                 \
                EACH_INDEX for (int v = 0; v < count; v++) {                                                          \
                    bits none = (bits)(sum[i][v] != sum[i][v]);                                                       \
                    sum[i][v] = (vector)((none & 0x7FC00000) | (~none & (bits)sum[i][v]));                            \
                }                                                                                                     \
        EACH_INDEX for (int i = 0; i < rows; i++, to += run->to_row)                                                  \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                *(memory *)(to + v * LANE) = (memory)sum[i][v];                                                       \
    }                                                                                                                 \
    LANE_FUNCTION(name, LANE_ROWS, lane_run)
#define LANE_TILE(name, ...)                                                                                          \
    LANE_LOOPS(name##_along, ALONG, __VA_ARGS__)                                                                      \
    LANE_LOOPS(name##_across, ACROSS, __VA_ARGS__)

LANE_SHAPES
