/* tile_direct.h: the part of the template (tile_template.h) that reads float32 weights where they lie: the tiles of
   lanes_direct.c (struct direct_run says what they do), from a chain's start to its end without a copy. */

/* Weights of a line of the cache, and how many before its use it is fetched into the second cache, then the first. */
enum { DIRECT_LINE = 16, DIRECT_BYTES = DIRECT_LINE * sizeof(float), DIRECT_EARLY = 512, DIRECT_AHEAD = 64 };

/* What is fetched at `at` goes on, when `left` weights lie between it and the rows' end, with the rows at `next`. */
INLINE const char *go_on(const char *at, int64_t left, const char *next)
{
    return left <= 0 && left > -DIRECT_LINE ? next : at;
}

/* Rows are reached from every third one, so that their addresses fit the registers. */
#define WEIGHT(i) (*(const float *)(w[(i) / 3] + (i) % 3 * run->step))

/* Tiles that end in half a vector need HALF_FMA32; others have none to multiply. */
#if !defined(HALF_FMA32)
#define HALF_FMA32(a, b, c) ((void)(a), (void)(b), (c))
#endif

typedef int32_t half_bits __attribute__((vector_size(4 * LANES)));

/* `type` numbers at `at`, and whether they are the last word. */
#define READ_AS(type, at) ((type) * (const type##_memory *)(at))
#define END_DIRECT(type, i, x)                                                                                        \
    if (run->bias)                                                                                                    \
        x = x + run->bias[i];                                                                                         \
    if (run->ends) {                                                                                                  \
        type##_bits none = (type##_bits)(x != x);                                                                     \
        x = (type)((none & 0x7FC00000) | (~none & (type##_bits)x));                                                   \
    }

/* `most` rows of `count` vectors and `halves` (0 or 1) of half a vector of the widest kind. */
#define DIRECT_TILE(name, most, kind, count, halves, fma, spread)                                                     \
    INLINE void name##_rows(const int rows, const struct direct_run *run)                                             \
    {                                                                                                                 \
        typedef float vector __attribute__((vector_size(sizeof(kind))));                                              \
        typedef float vector_memory __attribute__((vector_size(sizeof(kind)), aligned(sizeof(float)), may_alias));    \
        typedef int32_t vector_bits __attribute__((vector_size(sizeof(kind))));                                       \
        enum { LANE = sizeof(kind) / sizeof(float), WHOLE = LANE * count, WIDTH = WHOLE + halves * LANES };           \
        const float *right = run->right, *from = run->from;                                                           \
        const int64_t distance = run->length < DIRECT_EARLY ? run->length : DIRECT_EARLY;                             \
        const char *w[(most + 2) / 3], *early = run->w + distance * (int64_t)sizeof(float);                           \
        const char *ahead = run->w + DIRECT_AHEAD * sizeof(float);                                                    \
        vector sum[most][count + !count];                                                                             \
        half rest[most];                                                                                              \
        EACH_INDEX for (int i = 0; i < rows; i += 3)                                                                  \
            w[i / 3] = run->w + i * run->step;                                                                        \
        EACH_INDEX for (int i = 0; i < rows; i++) {                                                                   \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = from ? READ_AS(vector, from + i * WIDTH + v * LANE) : (vector){0};                        \
            rest[i] = halves && from ? READ_AS(half, from + i * WIDTH + WHOLE) : (half){0};                           \
        }                                                                                                             \
        for (int64_t k = 0; k < run->length; ahead += DIRECT_BYTES, early += DIRECT_BYTES) {                           \
            const int64_t end = k + DIRECT_LINE < run->length ? k + DIRECT_LINE : run->length;                        \
            ahead = go_on(ahead, run->length - k - DIRECT_AHEAD, run->ahead);                                         \
            early = go_on(early, run->length - k - distance, run->ahead);                                             \
            EACH_INDEX for (int i = 0; i < rows; i++) {                                                               \
                __builtin_prefetch(ahead + i * run->step, 0, 3);                                                      \
                __builtin_prefetch(early + i * run->step, 0, 2);                                                      \
            }                                                                                                         \
            for (; k < end; k++, right += WIDTH) {                                                                    \
                vector x[count + !count];                                                                             \
                half y = halves ? READ_AS(half, right + WHOLE) : (half){0};                                           \
                EACH_INDEX for (int v = 0; v < count; v++)                                                            \
                    x[v] = READ_AS(vector, right + v * LANE);                                                         \
                EACH_INDEX for (int i = 0; i < rows; i++) {                                                           \
                    vector weight = (vector)spread(WEIGHT(i));                                                        \
                    EACH_INDEX for (int v = 0; v < count; v++)                                                        \
                        sum[i][v] = (vector)fma((kind)weight, (kind)x[v], (kind)sum[i][v]);                           \
                    if (halves) {                                                                                     \
                        half low;                                                                                     \
                        memcpy(&low, &weight, sizeof low < sizeof weight ? sizeof low : sizeof weight);               \
                        rest[i] = HALF_FMA32(low, y, rest[i]);                                                        \
                    }                                                                                                 \
                }                                                                                                     \
                EACH_INDEX for (int i = 0; i < rows; i += 3)                                                          \
                    w[i / 3] += sizeof(float);                                                                        \
            }                                                                                                         \
        }                                                                                                             \
        EACH_INDEX for (int i = 0; i < rows; i++) {                                                                   \
            EACH_INDEX for (int v = 0; v < count; v++) {                                                              \
                END_DIRECT(vector, i, sum[i][v])                                                                      \
                *(vector_memory *)(run->to + i * WIDTH + v * LANE) = (vector_memory)sum[i][v];                        \
            }                                                                                                         \
            if (halves) {                                                                                             \
                END_DIRECT(half, i, rest[i])                                                                          \
                *(half_memory *)(run->to + i * WIDTH + WHOLE) = (half_memory)rest[i];                                 \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    LANE_FUNCTION(name, most, direct_run)

DIRECT_SHAPES
