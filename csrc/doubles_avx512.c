/* doubles_avx512.c: the tiles of doubles.c with AVX-512: 12 rows of one or two vectors. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "tile.h"

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,f16c")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { ROWS = 12, PITCH = LEFT_PITCH / sizeof(double), NO_COPY = -1 };

/* Before a loop over the rows of a tile: sums stay in registers where every index is a constant. */
#define EACH_INDEX _Pragma("GCC unroll 16")

/* 16 numbers as floats. */
INLINE __m512 floats_of(const int format, const char *p)
{
    if (format == REFMOE_FLOAT32)
        return _mm512_loadu_ps(p);
    __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (format == REFMOE_FP16)
        return _mm512_cvtph_ps(codes);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16);
}

INLINE void copy_piece(const int format, const char *from, double *to, float *squares)
{
    __m512 x = floats_of(format, from);
    _mm512_storeu_pd(to, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    _mm512_storeu_pd(to + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
    _mm512_storeu_ps(squares, _mm512_fmadd_ps(x, x, _mm512_loadu_ps(squares)));
}

#define DOUBLES_TILE(name, vector, count, load, keep, add, fma, spread)                                               \
    INLINE void name##_step(const int rows, const double *left, const double *right, vector (*sum)[count])            \
    {                                                                                                                 \
        enum { LANE = sizeof(vector) / sizeof(double) };                                                              \
        vector x[count];                                                                                              \
        EACH_INDEX for (int v = 0; v < count; v++)                                                                    \
            x[v] = load(right + v * LANE);                                                                            \
        EACH_INDEX for (int i = 0; i < rows; i++) {                                                                   \
            vector w = spread(left[i * PITCH]);                                                                       \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = fma(w, x[v], sum[i][v]);                                                                  \
        }                                                                                                             \
    }                                                                                                                 \
    INLINE void name##_rows(const int rows, const int format, const int copying, const struct doubles_run *run)       \
    {                                                                                                                 \
        enum { LANE = sizeof(vector) / sizeof(double) };                                                              \
        const struct doubles_copy *c = &run->copy;                                                                    \
        const double *left = run->left, *right = run->right, *from = run->from;                                       \
        const int64_t piece = format == REFMOE_FLOAT32 ? 64 : 32;                                                     \
        double *to = run->to;                                                                                         \
        vector sum[ROWS][count];                                                                                      \
        EACH_INDEX for (int i = 0; i < rows; i++)                                                                     \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                sum[i][v] = (vector){0};                                                                              \
        int64_t k = 0;                                                                                                \
        for (int64_t row = 0; row < ROWS && k < run->length; row++) {                                                 \
            const int64_t end = k + c->pieces < run->length ? k + c->pieces : run->length;                            \
            const char *codes = c->from + row * c->step, *fetch = c->next + row * c->step;                            \
            double *copy = copying ? c->to + row * PITCH : NULL;                                                      \
            for (; k < end; k++, fetch += piece, codes += piece, right += LANE * count) {                             \
                __builtin_prefetch(fetch, 0, 3);                                                                      \
                if (copying)                                                                                          \
                    copy_piece(format, codes, copy, c->squares + row * DOUBLES_PIECE), copy += DOUBLES_PIECE;         \
                name##_step(rows, left + k, right, sum);                                                              \
            }                                                                                                         \
        }                                                                                                             \
        for (; k < run->length; k++, right += LANE * count)                                                           \
            name##_step(rows, left + k, right, sum);                                                                  \
        if (from)                                                                                                     \
            EACH_INDEX for (int i = 0; i < rows; i++, from += DOUBLES_COLS)                                           \
                EACH_INDEX for (int v = 0; v < count; v++)                                                            \
                    sum[i][v] = add(load(from + v * LANE), sum[i][v]);                                                \
        EACH_INDEX for (int i = 0; i < rows; i++, to += DOUBLES_COLS)                                                 \
            EACH_INDEX for (int v = 0; v < count; v++)                                                                \
                keep(to + v * LANE, sum[i][v]);                                                                       \
    }                                                                                                                 \
    static TARGET void name(int rows, int format, const struct doubles_run *run)                                      \
    {                                                                                                                 \
        if (run->copy.to) {                                                                                           \
            if (format == REFMOE_FLOAT32)                                                                             \
                name##_rows(ROWS, REFMOE_FLOAT32, 1, run);                                                            \
            else if (format == REFMOE_BF16)                                                                           \
                name##_rows(ROWS, REFMOE_BF16, 1, run);                                                               \
            else                                                                                                      \
                name##_rows(ROWS, REFMOE_FP16, 1, run);                                                               \
            return;                                                                                                   \
        }                                                                                                             \
        switch (rows) {                                                                                               \
            CASE(name, 1) CASE(name, 2) CASE(name, 3) CASE(name, 4) CASE(name, 5) CASE(name, 6)                       \
            CASE(name, 7) CASE(name, 8) CASE(name, 9) CASE(name, 10) CASE(name, 11) CASE(name, 12)                    \
        }                                                                                                             \
    }
#define CASE(name, count)                                                                                             \
    case count:                                                                                                       \
        name##_rows(count, REFMOE_FLOAT32, 0, run);                                                                   \
        return;

DOUBLES_TILE(doubles_16, __m512d, 2, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_fmadd_pd, _mm512_set1_pd)
DOUBLES_TILE(doubles_8, __m512d, 1, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_fmadd_pd, _mm512_set1_pd)
DOUBLES_TILE(doubles_4, __m256d, 1, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_fmadd_pd, _mm256_set1_pd)

static TARGET void gather(int rows, const float *from, double *squares)
{
    for (int i = 0; i < rows; i++)
        squares[i] = (double)_mm512_reduce_add_ps(_mm512_loadu_ps(from + i * DOUBLES_PIECE));
}

const struct doubles refmoe_doubles_avx512 = {
    .rows = ROWS,
    .width = {16, 8, 4},
    .multiply = {doubles_16, doubles_8, doubles_4},
    .gather = gather,
};

#else
typedef int refmoe_no_doubles_avx512; /* a translation unit may not be empty */
#endif
