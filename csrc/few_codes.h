/* few_codes.h: the part of the template (few_template.h) for weights of 8 bits and less, decoded in registers. A stub
   says how half a vector of codes becomes doubles, and codes in vectors of 32 bits floats:

     MINI_EXPONENT    x is given times two to this where codes are MINI (below), in the exact profile
     FOUR_POWER(s)    numbers of FOUR_DOUBLES times this are what codes stand for; MINI ones times s->power
     struct shape     what these need of a format, and shape_of(s)
     FOUR_DOUBLES(p, half, shape)   the first or second LANES / 2 codes at p, of 4 bits
     MINI_DOUBLES(p, half, shape)   as much of codes of a byte with an exponent
     INT_DOUBLES(p, shape)          LANES / 2 integers of a byte at p
     FOUR_FLOATS(v, shape)          the lowest code of 4 bits of each lane
     LOW_DOUBLES(v), HIGH_DOUBLES(v)   half a vector of floats as doubles                                             */

enum { FOUR, MINI, INT8, SCALES_AT_ONCE = 64, MOST_GROUPS = 4 };

static int kind_of(const struct small *s) { return s->bits == 4 ? FOUR : s->integer ? INT8 : MINI; }

#define CODE_BYTES(kind, count) ((kind) == FOUR ? (count) / 2 : (count))

/* Of every number of rows and kind alike: one copy of it. */
#define APART static __attribute__((noinline)) TARGET

/* The greatest code without its sign. */
APART uint32_t greatest_code(int64_t count, const uint8_t *code)
{
    uint8_t most = 0;
    for (int64_t k = 0; k < count; k++) {
        uint8_t size = code[k] & 0x7F;
        most = size > most ? size : most;
    }
    return most;
}

/* Infinite and NaN codes are not told from others below; who finds one computes the output again. */
INLINE int has_specials(const struct small *s, int64_t count, const uint8_t *code)
{
    uint32_t first = s->none < s->infinite ? s->none : s->infinite;
    return first < 256 && greatest_code(count, code) >= first;
}

/* ---- scales ---- */

INLINE vf lane_powers(vu code)
{
    vu least = (vu)(code == 0), none = (vu)(code == 255);
    return (vf)((((code << 23) | (least & 0x00400000)) & ~none) | (none & 0x7FC00000));
}

INLINE vf lane_e4m3(vu code)
{
    vu size = code & 0x7F, none = (vu)(size == 0x7F);
    vu bits = (vu)((vf)(size << 20) * refmoe_small[REFMOE_E4M3].power);
    return (vf)((bits & ~none) | (none & 0x7FC00000) | (code & 0x80) << 24);
}

/* LANES numbers of a scale format from index `first` on, zeros beyond the `count`. */
INLINE vf some_scales(const void *scales, int format, int64_t first, int count)
{
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    if (format == REFMOE_E8M0 || format == REFMOE_E4M3) {
        bytes code = {0};
        memcpy(&code, (const uint8_t *)scales + first, (size_t)(count < LANES ? count : LANES));
        vu wide = __builtin_convertvector(code, vu);
        return format == REFMOE_E8M0 ? lane_powers(wide) : lane_e4m3(wide);
    }
    float room[LANES] = {0};
    for (int i = 0; i < LANES && i < count; i++)
        room[i] = number_at(scales, format, first + i);
    return *(const vf_memory *)room;
}

/* ---- exact ---- */

/* Scales of the next `left` blocks of a row, or SCALES_AT_ONCE of them, times `power`. Returns the greatest magnitude
   among them and `most`, as bits, which order alike; NaN is above all. */
APART int64_t read_scales(const struct codes *c, int64_t expert, int64_t row, int64_t first, int64_t left, double power,
                          int64_t most, double *to)
{
    int count = left < SCALES_AT_ONCE ? (int)left : SCALES_AT_ONCE;
    double tensor = power * (c->given.tensor_scales ? c->given.tensor_scales[expert] : 1.0);
    int64_t at = (expert * c->scale_rows + row / c->given.block_rows) * c->scale_cols + first;
    for (int i = 0; i < count; i += LANES) {
        vf some = some_scales(c->given.scales, c->given.scale_format, at + i, count - i);
        *(vd_memory *)(to + i) = LOW_DOUBLES(some) * tensor;
        *(vd_memory *)(to + i + LANES / 2) = HIGH_DOUBLES(some) * tensor;
    }
    for (int i = 0; i < count; i++) {
        int64_t bits = (int64_t)(bits_of_double(to[i]) & INT64_MAX);
        most = bits > most ? bits : most;
    }
    return most;
}

INLINE vd read_codes(const int kind, const uint8_t *w, const int half, const struct shape *shape)
{
    return kind == FOUR ? FOUR_DOUBLES(w, half, shape) : kind == MINI ? MINI_DOUBLES(w, half, shape)
                                                                      : INT_DOUBLES(w + half * (LANES / 2), shape);
}

INLINE void codes_step(const int rows, const int many, const int kind, const uint8_t *const *w, int64_t at,
                       const double *x, const struct shape *shape, vd (*part)[MOST_TOGETHER])
{
    vd left[MOST_TOGETHER], right[MOST_TOGETHER];
    for (int j = 0; j < many; j++)
        left[j] = read_codes(kind, w[j] + at, 0, shape), right[j] = read_codes(kind, w[j] + at, 1, shape);
    for (int i = 0; i < rows; i++, x += LANES) {
        vd first = *(const vd_memory *)x, second = *(const vd_memory *)(x + LANES / 2);
        for (int j = 0; j < many; j++)
            part[i][j] = FMA64(left[j], first, part[i][j]);
        for (int j = 0; j < many; j++)
            part[i][j] = FMA64(right[j], second, part[i][j]);
    }
}

/* The last codes of a sum, with zeros behind them. */
INLINE void codes_rest(const int rows, const int many, const int kind, const uint8_t *const *w, int64_t k, int count,
                       const double *x, const struct shape *shape, vd (*part)[MOST_TOGETHER])
{
    uint8_t rest[MOST_TOGETHER][LANES] = {{0}};
    const uint8_t *at[MOST_TOGETHER];
    for (int j = 0; j < many; j++) {
        memcpy(rest[j], w[j] + CODE_BYTES(kind, k), (size_t)CODE_BYTES(kind, count + (kind == FOUR)));
        at[j] = rest[j];
    }
    codes_step(rows, many, kind, at, 0, x + k * rows, shape, part);
}

/* What the outputs of a call have in common: blocks of k with one scale, and where there is none, the scale of all. */
struct exact {
    int64_t block, blocks;
    double power, alone;
    struct shape shape;
};

INLINE struct exact begin_exact(const int kind, const struct few_block *b)
{
    const struct codes *c = b->codes;
    double power = c->small->integer ? 1.0 : kind == FOUR ? FOUR_POWER(c->small) : c->small->power;
    int64_t block = c->given.scales && c->given.block_cols < b->length ? c->given.block_cols : b->length;
    return (struct exact){.block = block, .blocks = b->length > 0 ? (b->length - 1) / block + 1 : 0, .power = power,
                          .alone = power * (c->given.tensor_scales ? c->given.tensor_scales[b->expert] : 1.0),
                          .shape = shape_of(c->small)};
}

/* A block's codes meet x before their scale does, once for all of them. */
INLINE void codes_outputs(const int rows, const int many, const int kind, const struct few_block *b,
                          const struct exact *e, int first, int64_t step)
{
    const struct codes *c = b->codes;
    const uint8_t *w[MOST_TOGETHER];
    double scale[MOST_TOGETHER][SCALES_AT_ONCE];
    int64_t most[MOST_TOGETHER];
    for (int j = 0; j < many; j++) {
        w[j] = row_of_codes(c, b->expert, b->row + first + j * step);
        scale[j][0] = e->alone, most[j] = c->given.scales ? 0 : (int64_t)(bits_of_double(e->alone) & INT64_MAX);
    }
    vd total[MAX_FEW_ROWS][MOST_TOGETHER] = {{{0}}};
    int64_t k = 0, fetched = 0;
    for (int64_t number = 0; number < e->blocks; number++) {
        int at = (int)(number % SCALES_AT_ONCE);
        int64_t end = number + 1 < e->blocks ? k + e->block : b->length;
        for (int j = 0; j < many && at == 0 && c->given.scales; j++)
            most[j] = read_scales(c, b->expert, b->row + first + j * step, number, e->blocks - number, e->power,
                                  most[j], scale[j]);
        for (; fetched < CODE_BYTES(kind, end); fetched += LINE)
            for (int j = 0; j < many; j++)
                __builtin_prefetch(w[j] + many * c->pitch + fetched, 0, 2);
        vd part[MAX_FEW_ROWS][MOST_TOGETHER] = {{{0}}};
        for (; k + LANES <= end; k += LANES)
            codes_step(rows, many, kind, w, CODE_BYTES(kind, k), (const double *)b->x + k * rows, &e->shape, part);
        if (k < end)
            codes_rest(rows, many, kind, w, k, (int)(end - k), b->x, &e->shape, part);
        k = end;
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < many; j++)
                total[i][j] = FMA64(part[i][j], SPREAD64(scale[j][at]), total[i][j]);
    }
    for (int j = 0; j < many; j++) {
        for (int i = 0; i < rows; i++)
            ((double *)b->value)[i * LANES + first + j] = ADD_ALL(total[i][j]);
        b->largest[first + j] = double_of_bits((uint64_t)most[j]) * (c->small->largest / e->power);
        if (has_specials(c->small, CODE_BYTES(kind, b->length), w[j]))
            b->largest[first + j] = double_of_bits(UINT64_C(0x7FF) << 52);
    }
}

/* As exact_rows. */
INLINE void exact_codes_rows(const int rows, const int kind, const struct few_block *b)
{
    const int many = 4 * rows <= SUMS ? 4 : 2 * rows <= SUMS ? 2 : 1, enough = b->cols >= many;
    const struct exact e = begin_exact(kind, b);
    for (int j = 0; j < b->cols; j += enough ? many : 1)
        codes_outputs(rows, many, kind, b, &e, enough && j > b->cols - many ? b->cols - many : j, enough ? 1 : 0);
}

#include "few_codes_chain.h"

/* ---- one function for each number of rows and kind ---- */

#define CODES_FUNCTIONS_OF(rows, kind)                                                                                \
    static TARGET void exact_##kind##_##rows(const struct few_block *b) { exact_codes_rows(rows, kind, b); }          \
    static TARGET void chain_##kind##_##rows(const struct few_block *b) { chain_codes_rows(rows, kind, 0, b); }       \
    static TARGET void wide_##kind##_##rows(const struct few_block *b) { chain_codes_rows(rows, kind, 1, b); }
#define EACH_KIND(rows) CODES_FUNCTIONS_OF(rows, FOUR) CODES_FUNCTIONS_OF(rows, MINI) CODES_FUNCTIONS_OF(rows, INT8)
#define OF_EACH_KIND(name) {{UP_TO_8(name##_FOUR)}, {UP_TO_8(name##_MINI)}, {UP_TO_8(name##_INT8)}}

EACH_KIND(1) EACH_KIND(2) EACH_KIND(3) EACH_KIND(4) EACH_KIND(5) EACH_KIND(6) EACH_KIND(7) EACH_KIND(8)

#define CODES_FUNCTIONS                                                                                               \
    .mini_exponent = MINI_EXPONENT, .kind_of = kind_of,                                                               \
    .codes = {[REFMOE_CHAIN] = OF_EACH_KIND(chain), [REFMOE_EXACT] = OF_EACH_KIND(exact),                             \
              [REFMOE_WIDE] = OF_EACH_KIND(wide)}
