/* few_codes.h: the part of the template (few_template.h) for weights of 8 bits and less, decoded in registers. A stub says
   how half a vector of codes becomes doubles, and codes in vectors of 32 bits floats:

     MINI_EXPONENT    x is given times two to this where codes are MINI (below), in the exact profile
     FOUR_POWER(s)    numbers of FOUR_DOUBLES times this are what codes stand for; MINI ones times s->power
     struct shape     what these need of a format, and shape_of(s)
     FOUR_DOUBLES(p, half, shape)   the first or second LANES / 2 codes at p, of 4 bits
     MINI_DOUBLES(p, shape), INT_DOUBLES(p, shape)   LANES / 2 codes of a byte at p: with an exponent, integers
     FOUR_FLOATS(v, shape)          the lowest code of 4 bits of each lane                                            */

enum { FOUR, MINI, INT8, SCALES_AT_ONCE = 64 };

static int kind_of(const struct small *s) { return s->bits == 4 ? FOUR : s->integer ? INT8 : MINI; }

#define CODE_BYTES(kind, count) ((kind) == FOUR ? (count) / 2 : (count))

/* The greatest code without its sign. */
INLINE uint32_t greatest_code(int64_t count, const uint8_t *code)
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

/* ---- exact ---- */

/* Scales of `count` blocks of a row, times `power`. Returns the greatest magnitude among them and `most`, as bits, which
   order alike; NaN is above all. */
INLINE int64_t read_scales(const struct codes *c, int64_t expert, int64_t row, int64_t first, int count, double power,
                           int64_t most, double *to)
{
    double tensor = power * (c->given.tensor_scales ? c->given.tensor_scales[expert] : 1.0);
    int64_t at = (expert * c->scale_rows + row / c->given.block_rows) * c->scale_cols + first;
    const uint8_t *byte = (const uint8_t *)c->given.scales + at;
    if (c->given.scale_format == REFMOE_FLOAT32)
        for (int i = 0; i < count; i++)
            to[i] = ((const float *)c->given.scales)[at + i] * tensor;
    else if (c->given.scale_format == REFMOE_E8M0)
        for (int i = 0; i < count; i++) {
            uint64_t bits = (uint64_t)(byte[i] + 896) << 52, nan = UINT64_C(0x7FF8) << 48;
            to[i] = double_of_bits(byte[i] == 255 ? nan : bits) * tensor;
        }
    else if (c->given.scale_format == REFMOE_E4M3)
        for (int i = 0; i < count; i++)
            to[i] = float_of_small(&refmoe_small[REFMOE_E4M3], byte[i]) * tensor;
    else
        for (int i = 0; i < count; i++)
            to[i] = number_at(c->given.scales, c->given.scale_format, at + i) * tensor;
    for (int i = 0; i < count; i++) {
        int64_t bits = (int64_t)(bits_of_double(to[i]) & INT64_MAX);
        most = bits > most ? bits : most;
    }
    return most;
}

INLINE void read_codes(const int kind, const uint8_t *w, const struct shape *shape, vd *first, vd *second)
{
    if (kind == FOUR)
        *first = FOUR_DOUBLES(w, 0, shape), *second = FOUR_DOUBLES(w, 1, shape);
    else if (kind == MINI)
        *first = MINI_DOUBLES(w, shape), *second = MINI_DOUBLES(w + LANES / 2, shape);
    else
        *first = INT_DOUBLES(w, shape), *second = INT_DOUBLES(w + LANES / 2, shape);
}

INLINE void codes_step(const int rows, const int many, const int kind, const uint8_t *const *w, int64_t at,
                       const double *x, const struct shape *shape, vd (*part)[MOST_TOGETHER])
{
    vd left[MOST_TOGETHER], right[MOST_TOGETHER];
    for (int j = 0; j < many; j++)
        read_codes(kind, w[j] + at, shape, &left[j], &right[j]);
    for (int i = 0; i < rows; i++, x += LANES) {
        vd first = *(const vd_memory *)x, second = *(const vd_memory *)(x + LANES / 2);
        for (int j = 0; j < many; j++)
            part[i][j] = FMA64(left[j], first, part[i][j]);
        for (int j = 0; j < many; j++)
            part[i][j] = FMA64(right[j], second, part[i][j]);
    }
}

/* Codes of one block, up to the end of the sum. */
INLINE void codes_block(const int rows, const int many, const int kind, const uint8_t *const *w, int64_t from,
                        int64_t to, const double *x, const struct shape *shape, vd (*part)[MOST_TOGETHER])
{
    int64_t k = from;
    for (; k + LANES <= to; k += LANES)
        codes_step(rows, many, kind, w, CODE_BYTES(kind, k), x + k * rows, shape, part);
    if (k == to)
        return;
    uint8_t rest[MOST_TOGETHER][LANES] = {{0}};
    const uint8_t *at[MOST_TOGETHER];
    for (int j = 0; j < many; j++) {
        memcpy(rest[j], w[j] + CODE_BYTES(kind, k), (size_t)CODE_BYTES(kind, to - k + (kind == FOUR)));
        at[j] = rest[j];
    }
    codes_step(rows, many, kind, at, 0, x + k * rows, shape, part);
}

/* A block's codes meet x before their scale does, once for all of them. */
INLINE void codes_outputs(const int rows, const int many, const int kind, const struct few_block *b, int first,
                          int64_t step)
{
    const struct codes *c = b->codes;
    const struct small *s = c->small;
    const int64_t length = b->length, block = c->given.scales ? c->given.block_cols : length;
    const double power = s->integer ? 1.0 : kind == FOUR ? FOUR_POWER(s) : s->power;
    const struct shape shape = shape_of(s);
    const uint8_t *w[MOST_TOGETHER];
    double scale[MOST_TOGETHER][SCALES_AT_ONCE];
    int64_t most[MOST_TOGETHER] = {0};
    vd total[MAX_FEW_ROWS][MOST_TOGETHER] = {{{0}}};
    for (int j = 0; j < many; j++)
        w[j] = row_of_codes(c, b->expert, b->row + first + j * step);
    for (int64_t k = 0, number = 0; k < length; k += block, number++) {
        int at = (int)(number % SCALES_AT_ONCE);
        int64_t left = (length - k + block - 1) / block;
        for (int j = 0; j < many && at == 0; j++)
            if (c->given.scales)
                most[j] = read_scales(c, b->expert, b->row + first + j * step, number,
                                      (int)(left < SCALES_AT_ONCE ? left : SCALES_AT_ONCE), power, most[j], scale[j]);
            else
                scale[j][0] = power, most[j] = (int64_t)bits_of_double(power);
        vd part[MAX_FEW_ROWS][MOST_TOGETHER] = {{{0}}};
        for (int j = 0; j < many; j++)
            __builtin_prefetch(w[j] + many * c->pitch + CODE_BYTES(kind, k), 0, 2);
        codes_block(rows, many, kind, w, k, k + block < length ? k + block : length, b->x, &shape, part);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < many; j++)
                total[i][j] = FMA64(part[i][j], SPREAD64(scale[j][at]), total[i][j]);
    }
    for (int j = 0; j < many; j++) {
        for (int i = 0; i < rows; i++)
            ((double *)b->value)[i * LANES + first + j] = ADD_ALL(total[i][j]);
        b->largest[first + j] = double_of_bits((uint64_t)most[j]) * (s->largest / power);
        if (has_specials(s, CODE_BYTES(kind, length), w[j]))
            b->largest[first + j] = double_of_bits(UINT64_C(0x7FF) << 52);
    }
}

/* As exact_rows. */
INLINE void exact_codes_rows(const int rows, const int kind, const struct few_block *b)
{
    const int many = rows <= 2 ? 4 : 2, enough = b->cols >= many;
    for (int j = 0; j < b->cols; j += enough ? many : 1)
        codes_outputs(rows, many, kind, b, enough && j > b->cols - many ? b->cols - many : j, enough ? 1 : 0);
}

/* ---- chain: weights that float32 holds ---- */

/* Codes in a lane of 32 bits. */
#define IN_LANE(kind) ((kind) == FOUR ? 8 : 4)

/* The powers of two of block `at`, of every output. */
INLINE vf lane_scales(const uint8_t *const *scales, int64_t at)
{
    vu code, least, none;
    for (int j = 0; j < LANES; j++)
        code[j] = scales[j][at];
    least = (vu)(code == 0), none = (vu)(code == 255);
    return (vf)((((code << 23) | (least & 0x00400000)) & ~none) | (none & 0x7FC00000));
}

/* The numbers of the code that begins at bit `at` of every lane. */
INLINE vf lane_codes(const int kind, const struct small *s, const struct shape *shape, vu lanes, int at)
{
    typedef int32_t vs __attribute__((vector_size(4 * LANES)));
    if (kind == FOUR)
        return FOUR_FLOATS(lanes >> at, shape);
    vs up = (vs)(lanes << (32 - s->bits - at));
    if (kind == INT8)
        return __builtin_convertvector(up >> 24, vf);
    uint32_t mask = UINT32_C(1) << 31 | ((UINT32_C(1) << (s->bits - 1)) - 1) << (23 - s->fraction);
    return (vf)((vu)(up >> (9 - s->bits + s->fraction)) & mask) * s->power;
}

struct lane_state {
    const uint8_t *w[LANES], *scales[LANES];
    int64_t block;
    vf scale;
    struct shape shape;
};

/* `count` codes of every output from k on, 8 or 4 in each of the turned lanes; scales change between lanes only. */
INLINE void codes_lanes(const int rows, const int kind, const struct few_block *b, struct lane_state *t, int64_t k,
                        const int whole, int64_t count, const vu *turned, vf *sum)
{
    const int in_lane = IN_LANE(kind), bits = 32 / in_lane;
    const float *x = (const float *)b->x + k * rows;
    for (int64_t d = 0; d < (whole ? LANES : (count + in_lane - 1) / in_lane); d++, x += in_lane * rows) {
        int64_t at = k + d * in_lane;
        if (b->codes->given.scales && at % t->block == 0)
            t->scale = lane_scales(t->scales, at / t->block);
        int end = whole || count - d * in_lane > in_lane ? in_lane : (int)(count - d * in_lane);
        if (end == in_lane)
            for (int i = 0; i < in_lane; i++)
                meet(rows, lane_codes(kind, b->codes->small, &t->shape, turned[d], i * bits) * t->scale, x + i * rows, sum);
        else
            for (int i = 0; i < end; i++)
                meet(rows, lane_codes(kind, b->codes->small, &t->shape, turned[d], i * bits) * t->scale, x + i * rows, sum);
    }
}

INLINE void chain_codes_rows(const int rows, const int kind, const struct few_block *b)
{
    const struct codes *c = b->codes;
    const int64_t depth = LANES * IN_LANE(kind);
    float *value = b->value;
    vf sum[MAX_FEW_ROWS];
    vu turned[LANES];
    struct lane_state t = {.block = c->given.scales ? c->given.block_cols : b->length, .scale = (vf){0} + 1,
                           .shape = shape_of(c->small)};
    for (int j = 0; j < LANES; j++) {
        int64_t row = b->row + (j < b->cols ? j : b->cols - 1);
        t.w[j] = row_of_codes(c, b->expert, row);
        t.scales[j] = c->given.scales ? (const uint8_t *)c->given.scales
                                            + (b->expert * c->scale_rows + row / c->given.block_rows) * c->scale_cols
                                      : NULL;
        b->largest[j] = has_specials(c->small, CODE_BYTES(kind, b->length), t.w[j]);
    }
    for (int i = 0; i < rows; i++)
        sum[i] = *(const vf_memory *)(value + i * LANES);
    int64_t k = 0;
    for (; k + depth <= b->length; k += depth) {
        for (int j = 0; j < LANES; j++) {
            __builtin_prefetch(t.w[j] + LANES * c->pitch + CODE_BYTES(kind, k), 0, 2);
            turned[j] = *(const vu_memory *)(t.w[j] + CODE_BYTES(kind, k));
        }
        TURN(turned);
        codes_lanes(rows, kind, b, &t, k, 1, depth, turned, sum);
    }
    if (k < b->length) {
        int64_t count = b->length - k;
        memset(turned, 0, sizeof turned);
        for (int j = 0; j < LANES; j++)
            memcpy(&turned[j], t.w[j] + CODE_BYTES(kind, k), (size_t)CODE_BYTES(kind, count + (kind == FOUR)));
        TURN(turned);
        codes_lanes(rows, kind, b, &t, k, 0, count, turned, sum);
    }
    for (int i = 0; i < rows; i++)
        *(vf_memory *)(value + i * LANES) = sum[i];
}

/* ---- one function for each number of rows and kind ---- */

#define CODES_FUNCTION(profile, rows, kind)                                                                           \
    static TARGET void profile##_##kind##_##rows(const struct few_block *b) { profile##_codes_rows(rows, kind, b); }
#define EACH_KIND(profile, rows)                                                                                      \
    CODES_FUNCTION(profile, rows, FOUR) CODES_FUNCTION(profile, rows, MINI) CODES_FUNCTION(profile, rows, INT8)
#define CODES_UP_TO_4(name) NULL, name##_1, name##_2, name##_3, name##_4

EACH_KIND(chain, 1) EACH_KIND(chain, 2) EACH_KIND(chain, 3) EACH_KIND(chain, 4)
EACH_KIND(exact, 1) EACH_KIND(exact, 2) EACH_KIND(exact, 3) EACH_KIND(exact, 4)

#define CODES_FUNCTIONS                                                                                               \
    .mini_exponent = MINI_EXPONENT, .kind_of = kind_of,                                                               \
    .codes = {[REFMOE_CHAIN] = {{CODES_UP_TO_4(chain_FOUR)}, {CODES_UP_TO_4(chain_MINI)}, {CODES_UP_TO_4(chain_INT8)}},\
              [REFMOE_EXACT] = {{CODES_UP_TO_4(exact_FOUR)}, {CODES_UP_TO_4(exact_MINI)}, {CODES_UP_TO_4(exact_INT8)}}}
