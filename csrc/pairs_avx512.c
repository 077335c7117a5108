/* pairs_avx512.c: two k a step with vdpbf16ps of AVX-512.

   The instruction adds the product of the high halves, then that of the low ones, each with one rounding to float32,
   and takes subnormals for zero in its operands, results and accumulators. Some processors might do otherwise: a sum of
   which the answer is known is done first. */

#if defined(__x86_64__)

#include <immintrin.h>

#include "environment.h"
#include "tile.h"

#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) TARGET

enum { LANES = 16, WORDS = 16, CACHE_LINE = 64 }; /* of a vector; of a line of the cache */

/* Before a loop over the rows of a tile: sums stay in registers where every index is a constant. */
#define EACH_INDEX _Pragma("GCC unroll 16")

/* ---- words ---- */

/* What speaks against the numbers so far: the smallest of them, less one (zero is the largest), and bits that bf16 does
   not have. */
struct seen {
    __m512i least, low;
};

INLINE __m512i look_at(__m512i words, struct seen *seen)
{
    __m512i size = _mm512_and_si512(words, _mm512_set1_epi16(0x7FFF));
    seen->least = _mm512_min_epu16(seen->least, _mm512_sub_epi16(size, _mm512_set1_epi16(1)));
    return words;
}

INLINE struct seen nothing_yet(void) { return (struct seen){_mm512_set1_epi16(-1), _mm512_setzero_si512()}; }

INLINE int is_safe(const struct seen *seen)
{
    return !_mm512_cmplt_epu16_mask(seen->least, _mm512_set1_epi16(UNSAFE_BELOW - 1))
           && !_mm512_test_epi16_mask(seen->low, _mm512_set1_epi32(0xFFFF));
}

INLINE __mmask32 first(int64_t count) { return count >= 32 ? UINT32_MAX : ((UINT32_C(1) << count) - 1); }

/* 16 words of one row, `count` of whose next k are numbers. */
INLINE __m512i words_along(const struct pair_source *from, int64_t at, int64_t count, struct seen *seen)
{
    const __m512i high_halves = _mm512_set_epi16(61, 63, 57, 59, 53, 55, 49, 51, 45, 47, 41, 43, 37, 39, 33, 35,
                                                 29, 31, 25, 27, 21, 23, 17, 19, 13, 15, 9, 11, 5, 7, 1, 3);
    __mmask32 real = first(count);
    if (from->format == REFMOE_BF16)
        return look_at(_mm512_rol_epi32(_mm512_maskz_loadu_epi16(real, (const uint16_t *)from->x + at), 16), seen);
    __m512i a = _mm512_maskz_loadu_epi32((__mmask16)real, (const float *)from->x + at);
    __m512i b = _mm512_maskz_loadu_epi32((__mmask16)(real >> 16), (const float *)from->x + at + 16);
    seen->low = _mm512_or_si512(seen->low, _mm512_or_si512(a, b));
    return look_at(_mm512_permutex2var_epi16(a, high_halves, b), seen);
}

/* Rows of words become columns. */
INLINE void turn(__m512i r[16])
{
    __m512i s[16];
    EACH_INDEX for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    EACH_INDEX for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    EACH_INDEX for (int i = 0; i < 16; i += 8)
        EACH_INDEX for (int j = i; j < i + 4; j++) {
            s[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
            s[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xDD);
        }
    EACH_INDEX for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(s[j], s[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(s[j], s[j + 8], 0xDD);
    }
}

/* A line of each of four rows of codes, `step` bytes apart, as words: at a distance that does not map all of them to
   the same few lines of the first cache. */
INLINE void stage_four(const char *codes, int64_t step, uint32_t *staged, struct seen *seen)
{
    EACH_INDEX for (int i = 0; i < 4; i++)
        _mm512_storeu_si512(staged + i * WORDS,
                            look_at(_mm512_rol_epi32(_mm512_loadu_si512(codes + i * step), 16), seen));
}

/* Four words of each of 16 staged rows as columns `width` words apart: four rows to a vector. */
INLINE void turn_fours(const uint32_t *staged, int64_t width, uint32_t *to)
{
    __m512i r[4], s[4];
    EACH_INDEX for (int i = 0; i < 4; i++) {
        const __m128i *at = (const __m128i *)(const void *)(staged + i * WORDS);
        r[i] = _mm512_broadcast_i32x4(_mm_load_si128(at));
        r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00F0, _mm_load_si128(at + WORDS));
        r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0F00, _mm_load_si128(at + 2 * WORDS));
        r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xF000, _mm_load_si128(at + 3 * WORDS));
    }
    s[0] = _mm512_unpacklo_epi32(r[0], r[1]), s[1] = _mm512_unpacklo_epi32(r[2], r[3]);
    s[2] = _mm512_unpackhi_epi32(r[0], r[1]), s[3] = _mm512_unpackhi_epi32(r[2], r[3]);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(s[0], s[1]));
    _mm512_storeu_si512(to + width, _mm512_unpackhi_epi64(s[0], s[1]));
    _mm512_storeu_si512(to + 2 * width, _mm512_unpacklo_epi64(s[2], s[3]));
    _mm512_storeu_si512(to + 3 * width, _mm512_unpackhi_epi64(s[2], s[3]));
}

static TARGET void turn_lines(const char *codes, int64_t step, int64_t width, uint32_t *to, struct seen *seen)
{
    _Alignas(64) uint32_t staged[LANES * WORDS];
    for (int i = 0; i < LANES; i += 4)
        stage_four(codes + i * step, step, staged + i * WORDS, seen);
    for (int t = 0; t < WORDS; t += 4)
        turn_fours(staged + t, width, to + t * width);
}

static TARGET int along(const struct pair_source *from, uint32_t *to)
{
    struct seen seen = nothing_yet();
    for (int j = 0; j < from->width; j += LANES) {
        __mmask16 lanes = (__mmask16)first(from->width - j);
        int64_t k = 0;
        if (from->format == REFMOE_BF16 && j + LANES <= from->count)
            for (; k + 2 * WORDS <= from->length; k += 2 * WORDS)
                turn_lines((const char *)((const uint16_t *)from->x + j * from->step + k), 2 * from->step, from->width,
                           to + k / 2 * from->width + j, &seen);
        for (; k < from->length; k += 2 * WORDS) {
            int64_t left = (from->length - k + 1) / 2, words = left < WORDS ? left : WORDS;
            __m512i row[16];
            EACH_INDEX for (int i = 0; i < 16; i++)
                row[i] = j + i < from->count
                             ? words_along(from, (j + i) * from->step + k, from->length - k, &seen)
                             : _mm512_setzero_si512();
            turn(row);
            uint32_t *at = to + k / 2 * from->width + j;
            EACH_INDEX for (int t = 0; t < WORDS; t++)
                if (t < words)
                    _mm512_mask_storeu_epi32(at + t * from->width, lanes, row[t]);
        }
    }
    return is_safe(&seen);
}

/* 16 numbers, `real` of them, each in the high half of its word; `whole`: all of them are. */
INLINE __m512i high_halves(const struct pair_source *from, const int format, int64_t at, const int whole,
                           __mmask16 real, struct seen *seen)
{
    if (format == REFMOE_BF16) {
        const uint16_t *x = (const uint16_t *)from->x + at;
        __m256i codes = whole ? _mm256_loadu_si256((const __m256i *)(const void *)x)
                              : _mm256_maskz_loadu_epi16(real, x);
        return _mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16);
    }
    const float *x = (const float *)from->x + at;
    __m512i numbers = whole ? _mm512_loadu_si512(x) : _mm512_maskz_loadu_epi32(real, x);
    seen->low = _mm512_or_si512(seen->low, numbers);
    return numbers;
}

/* Two neighbouring k of 16 numbers, of the second `second`, as words. */
INLINE __m512i weave(const struct pair_source *from, const int format, int64_t k, int j, const int whole,
                     __mmask16 real, __mmask16 second, struct seen *seen)
{
    __m512i high = high_halves(from, format, k * from->step + j, whole, real, seen);
    __m512i low = high_halves(from, format, (k + 1) * from->step + j, whole, second, seen);
    return look_at(_mm512_mask_blend_epi16(0x55555555, high, _mm512_srli_epi32(low, 16)), seen);
}

INLINE int weave_all(const struct pair_source *from, const int format, uint32_t *to)
{
    struct seen seen = nothing_yet();
    int whole = from->count / LANES * LANES;
    for (int64_t k = 0; k < from->length; k += 2, to += from->width) {
        int both = k + 1 < from->length;
        int j = 0;
        for (; j < whole && both; j += LANES)
            _mm512_storeu_si512(to + j, weave(from, format, k, j, 1, UINT16_MAX, UINT16_MAX, &seen));
        for (; j < from->width; j += LANES) {
            __mmask16 real = (__mmask16)(from->count > j ? first(from->count - j) : 0);
            __m512i words = weave(from, format, k, j, 0, real, both ? real : 0, &seen);
            _mm512_mask_storeu_epi32(to + j, (__mmask16)first(from->width - j), words);
        }
    }
    return is_safe(&seen);
}

static TARGET int across(const struct pair_source *from, uint32_t *to)
{
    return from->format == REFMOE_BF16 ? weave_all(from, REFMOE_BF16, to) : weave_all(from, REFMOE_FLOAT32, to);
}

/* ---- sums ---- */

/* Half to even by integers, as settle of tile_template.h. */
INLINE __m512 ended(__m512 sum, const int format)
{
    __mmask16 none = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
    __m512i bits = _mm512_castps_si512(sum), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    if (format == REFMOE_BF16)
        bits = _mm512_and_si512(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd),
                                _mm512_set1_epi32((int)0xFFFF0000u));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, none, _mm512_set1_epi32(0x7FC00000)));
}

INLINE void put(float *to, __m512 x, int past)
{
    if (past && (uintptr_t)to % sizeof x == 0)
        _mm512_stream_ps(to, x);
    else
        _mm512_storeu_ps(to, x);
}

INLINE void put_rows(const int rows, const int format, const struct pair_run *run, __m512 (*sum)[2])
{
    EACH_INDEX for (int i = 0; i < rows; i++)
        EACH_INDEX for (int v = 0; v < 2; v++) {
            __m512 x = run->bias ? _mm512_add_ps(sum[i][v], _mm512_loadu_ps(run->bias + v * LANES)) : sum[i][v];
            put(run->to + i * run->to_row + v * LANES, ended(x, format), run->past);
        }
}

/* Part number `part` of a panel that is turned: fours of the line that is staged, while four rows of the next are. (A
   number without a sign, whose quotients are shifts.) */
INLINE void turn_part(const struct turned *turned, uint64_t part, struct seen *seen)
{
    enum { STAGED = STAGED_WORDS / 2 };
    uint64_t line = part / PARTS_OF_LINE, row = part % PARTS_OF_LINE * 4;
    uint64_t fours = part % 4 * 4, half = part / 4 % 2 * LANES;
    uint32_t *here = turned->staged + line % 2 * STAGED, *there = turned->staged + (line + 1) % 2 * STAGED;
    const char *next = turned->codes + (line + 1) * CACHE_LINE;
    EACH_INDEX for (int i = 0; i < 4; i++)
        __builtin_prefetch(turned->soon + (part * 4 + i) * CACHE_LINE, 0, 3);
    if (line + 1 < (uint64_t)turned->lines)
        stage_four(next + row * turned->step, turned->step, there + row * WORDS, seen);
    turn_fours(here + half * WORDS + fours, PAIR_COLS, turned->to + (line * WORDS + fours) * PAIR_COLS + half);
}

INLINE void stage_first(const struct turned *turned, struct seen *seen)
{
    for (int i = 0; i < PAIR_COLS; i += 4)
        stage_four(turned->codes + i * turned->step, turned->step, turned->staged + i * WORDS, seen);
}

INLINE int multiply_rows(const int rows, const int turning, const struct pair_run *run)
{
    struct seen seen = nothing_yet();
    const struct turned *turned = run->turned;
    int64_t part = turning ? turned->first : 0, steps = turning ? turned->steps : 0, wait = steps;
    const uint32_t *left = run->left, *right = run->right;
    __m512 sum[PAIR_ROWS][2];
    EACH_INDEX for (int i = 0; i < rows; i++)
        EACH_INDEX for (int v = 0; v < 2; v++)
            sum[i][v] = run->from ? _mm512_loadu_ps(run->from + i * PAIR_COLS + v * LANES) : _mm512_setzero_ps();
    if (turning && part == 0)
        stage_first(turned, &seen);
    for (int64_t t = 0, row = 0; t < run->words; row++) {
        const char *line = run->fetch + row * run->step;
        const int64_t end = t + run->lines < run->words ? t + run->lines : run->words;
        for (; t < end; t++, line += CACHE_LINE, left += PAIR_ROWS, right += PAIR_COLS) {
            __m512bh x[2];
            if (!turning)
                __builtin_prefetch(line, 0, 3);
            if (turning && --wait == 0) {
                wait = steps;
                if (part < turned->last)
                    turn_part(turned, part++, &seen);
            }
            EACH_INDEX for (int v = 0; v < 2; v++)
                x[v] = (__m512bh)_mm512_loadu_si512(right + v * LANES);
            EACH_INDEX for (int i = 0; i < rows; i++) {
                __m512bh w = (__m512bh)_mm512_set1_epi32((int)left[i]);
                EACH_INDEX for (int v = 0; v < 2; v++)
                    sum[i][v] = _mm512_dpbf16_ps(sum[i][v], w, x[v]);
            }
        }
    }
    if (run->ends == REFMOE_FLOAT32)
        put_rows(rows, REFMOE_FLOAT32, run, sum);
    else if (run->ends == REFMOE_BF16)
        put_rows(rows, REFMOE_BF16, run, sum);
    else
        EACH_INDEX for (int i = 0; i < rows; i++)
            EACH_INDEX for (int v = 0; v < 2; v++)
                _mm512_storeu_ps(run->to + i * run->to_row + v * LANES, sum[i][v]);
    for (; turning && part < turned->last; part++)
        turn_part(turned, part, &seen);
    return is_safe(&seen);
}

#define CASE(count)                                                                                                   \
    case count:                                                                                                       \
        return run->turned ? multiply_rows(count, 1, run) : multiply_rows(count, 0, run);

static TARGET int multiply(int rows, const struct pair_run *run)
{
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
    return 1;
}

/* ---- does the instruction add as it should? ---- */

static uint32_t next_word(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* A safe code: any sign and significand, exponents from 2^-55 to 2^8. */
static uint32_t next_code(uint32_t *state)
{
    uint32_t exponent = 127 - 55 + next_word(state) % 64;
    return (next_word(state) & 0x807F) | exponent << 7;
}

static TARGET float chained(float sum, uint32_t a, uint32_t b)
{
    __m128 high = _mm_fmadd_ss(_mm_set_ss(float_of_bits(a & 0xFFFF0000u)), _mm_set_ss(float_of_bits(b & 0xFFFF0000u)),
                               _mm_set_ss(sum));
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(float_of_bits(a << 16)), _mm_set_ss(float_of_bits(b << 16)), high));
}

static TARGET int is_chained(void)
{
    uint32_t state = 1, sixteen[3][16];
    int alike = 1;
    for (int turn = 0; turn < 8; turn++) {
        for (int j = 0; j < 16; j++)
            for (int i = 0; i < 3; i++)
                sixteen[i][j] = next_code(&state) << 16 | (i < 2 ? next_code(&state) : 0);
        __m512 sum = _mm512_loadu_ps(sixteen[2]);
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_ps(sixteen[0]), (__m512bh)_mm512_loadu_ps(sixteen[1]));
        uint32_t got[16];
        _mm512_storeu_ps(got, sum);
        for (int j = 0; j < 16; j++)
            alike &= got[j] == bits_of_float(chained(float_of_bits(sixteen[2][j]), sixteen[0][j], sixteen[1][j]));
    }
    return alike;
}

/* Asked before the threads begin: in the caller's floating-point mode, which must not decide. */
static int runs_here(void)
{
    if (!__builtin_cpu_supports("avx512bf16"))
        return 0;
    environment found = enter_environment();
    int alike = is_chained();
    leave_environment(found);
    return alike;
}

const struct pairs refmoe_pairs_avx512 = {runs_here, multiply, along, across};

#else
typedef int refmoe_no_pairs_avx512; /* a translation unit may not be empty */
#endif
