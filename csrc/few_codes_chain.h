/* few_codes_chain.h: the part of few_codes.h for the chain profile. Lanes are outputs, k ascends; some vectors of
   outputs at a time, so that a chain need not wait for itself. A chain is `wide` where float32 does not hold the
   products of code and scale: its sums stand in doubles, every one of which a float32 holds. */

#include "fuse.h"

/* Codes in a lane of 32 bits. */
#define IN_LANE(kind) ((kind) == FOUR ? 8 : 4)

/* A vector of outputs: where their codes and scales lie; four scales of a byte, from a block on that four divides; the
   scale that holds, of a wide chain with the power that `lane_codes` leaves out. */
struct outputs {
    const uint8_t *w[LANES], *scales[LANES];
    vu four;
    vf scale;
    vd wide[2];
};

struct chain {
    const struct few_block *b;
    int64_t block, number, left; /* codes of a scale; the block that comes next, and lanes of 32 bits until it does */
    double tensor;
    struct shape shape;
    struct outputs part[MOST_GROUPS];
};

/* Numbers of one profile's sums, either `narrow` or `wide`. */
struct sums {
    vf narrow[MAX_FEW_ROWS][MOST_GROUPS];
    vd wide[MAX_FEW_ROWS][MOST_GROUPS][2];
};

/* ---- scales ---- */

/* Up to four bytes of each output's scales, of blocks `number` and on. */
INLINE vu four_scales(const struct outputs *o, int64_t number, int64_t all)
{
    uint32_t room[LANES] = {0};
    vu four;
    if (number + 4 <= all)
        for (int j = 0; j < LANES; j++)
            memcpy(&room[j], o->scales[j] + number, 4);
    else
        for (int j = 0; j < LANES; j++)
            memcpy(&room[j], o->scales[j] + number, (size_t)(all - number));
    memcpy(&four, room, sizeof four);
    return four;
}

/* The scales of block `number`, those of a tensor left out. */
INLINE vf lane_scales(const struct codes *c, struct outputs *o, int64_t number)
{
    int format = c->given.scale_format, at = (int)(number % 4) * 8;
    if (format == REFMOE_E8M0 || format == REFMOE_E4M3) {
        if (at == 0)
            o->four = four_scales(o, number, c->scale_cols);
        vu code = o->four >> at & 0xFF;
        return format == REFMOE_E8M0 ? lane_powers(code) : lane_e4m3(code);
    }
    float room[LANES];
    for (int j = 0; j < LANES; j++)
        room[j] = number_at(o->scales[j], format, number);
    return *(const vf_memory *)room;
}

INLINE void take_scale(const int kind, const int wide, const struct chain *t, struct outputs *o, vf scale)
{
    double factor = kind == MINI ? t->tensor * t->b->codes->small->power : t->tensor;
    if (wide)
        o->wide[0] = LOW_DOUBLES(scale) * factor, o->wide[1] = HIGH_DOUBLES(scale) * factor;
    else
        o->scale = scale;
}

/* Scales change between lanes of 32 bits only. */
APART void next_block(int groups, int kind, int wide, struct chain *t)
{
    for (int g = 0; g < groups; g++)
        take_scale(kind, wide, t, &t->part[g], lane_scales(t->b->codes, &t->part[g], t->number));
    t->number++;
    t->left = t->block / IN_LANE(kind);
}

/* ---- codes ---- */

/* The numbers of the code that begins at bit `at` of every lane; `wide`, MINI ones without their power. */
INLINE vf lane_codes(const int kind, const int wide, const struct small *s, const struct shape *shape, vu lanes, int at)
{
    typedef int32_t vs __attribute__((vector_size(4 * LANES)));
    if (kind == FOUR)
        return FOUR_FLOATS(lanes >> at, shape);
    vs up = (vs)(lanes << (32 - s->bits - at));
    if (kind == INT8)
        return __builtin_convertvector(up >> 24, vf);
    uint32_t mask = UINT32_C(1) << 31 | ((UINT32_C(1) << (s->bits - 1)) - 1) << (23 - s->fraction);
    vf number = (vf)((vu)(up >> (9 - s->bits + s->fraction)) & mask);
    return wide ? number : number * s->power;
}

INLINE void meet_wide(const int rows, vf number, const struct outputs *o, int g, const double *x, struct sums *sum)
{
    vd low = LOW_DOUBLES(number) * o->wide[0], high = HIGH_DOUBLES(number) * o->wide[1];
    for (int i = 0; i < rows; i++) {
        sum->wide[i][g][0] = fused_wide(low, SPREAD64(x[i]), sum->wide[i][g][0]);
        sum->wide[i][g][1] = fused_wide(high, SPREAD64(x[i]), sum->wide[i][g][1]);
    }
}

/* One k of every output. */
INLINE void meet_codes(const int rows, const int groups, const int kind, const int wide, const struct chain *t,
                       const vu (*turned)[LANES], int lane, int at, int64_t k, struct sums *sum)
{
    for (int g = 0; g < groups; g++) {
        vf number = lane_codes(kind, wide, t->b->codes->small, &t->shape, turned[g][lane], at);
        if (wide) {
            meet_wide(rows, number, &t->part[g], g, (const double *)t->b->x + k * rows, sum);
            continue;
        }
        const float *x = (const float *)t->b->x + k * rows;
        for (int i = 0; i < rows; i++)
            sum->narrow[i][g] = FMA32(number * t->part[g].scale, SPREAD32(x[i]), sum->narrow[i][g]);
    }
}

/* `count` codes of every output from k on, 8 or 4 in each of the turned lanes. */
INLINE void codes_lanes(const int rows, const int groups, const int kind, const int wide, struct chain *t, int64_t k,
                        int64_t count, const vu (*turned)[LANES], struct sums *sum)
{
    const int in_lane = IN_LANE(kind), bits = 32 / in_lane;
    int lane = 0;
    for (; count >= in_lane; count -= in_lane, k += in_lane, lane++) {
        if (t->left-- == 0)
            next_block(groups, kind, wide, t), t->left--;
        for (int i = 0; i < in_lane; i++)
            meet_codes(rows, groups, kind, wide, t, turned, lane, i * bits, k + i, sum);
    }
    if (count && t->left-- == 0)
        next_block(groups, kind, wide, t);
    for (int i = 0; i < count; i++)
        meet_codes(rows, groups, kind, wide, t, turned, lane, i * bits, k + i, sum);
}

/* ---- outputs ---- */

APART void begin_outputs(int kind, int wide, const struct few_block *b, int first, struct chain *t,
                          struct outputs *o)
{
    const struct codes *c = b->codes;
    for (int j = 0; j < LANES; j++) {
        int64_t row = b->row + (first + j < b->cols ? first + j : b->cols - 1);
        o->w[j] = row_of_codes(c, b->expert, row);
        o->scales[j] = (const uint8_t *)c->given.scales;
        if (c->given.scales)
            o->scales[j] += ((b->expert * c->scale_rows + row / c->given.block_rows) * c->scale_cols)
                            * scale_bytes(c->given.scale_format);
        b->largest[first + j] = has_specials(c->small, CODE_BYTES(kind, b->length), o->w[j]);
    }
    take_scale(kind, wide, t, o, (vf){0} + 1);
}

INLINE void begin_sums(const int rows, const int groups, const int wide, const float *value, struct sums *sum)
{
    for (int i = 0; i < rows; i++)
        for (int g = 0; g < groups; g++, value += LANES) {
            vf start = *(const vf_memory *)value;
            if (wide)
                sum->wide[i][g][0] = LOW_DOUBLES(start), sum->wide[i][g][1] = HIGH_DOUBLES(start);
            else
                sum->narrow[i][g] = start;
        }
}

INLINE void end_sums(const int rows, const int groups, const int wide, const struct sums *sum, float *value)
{
    for (int i = 0; i < rows; i++)
        for (int g = 0; g < groups; g++, value += LANES)
            if (wide) {
                *(half_memory *)value = narrowed(sum->wide[i][g][0]);
                *(half_memory *)(value + LANES / 2) = narrowed(sum->wide[i][g][1]);
            } else {
                *(vf_memory *)value = sum->narrow[i][g];
            }
}

/* A run of each output's codes, a lane of 32 bits each: whole ones, and what is left of them, with zeros behind. */
APART void turn_codes(const struct codes *c, int groups, const struct outputs *o, int64_t at, int64_t bytes,
                       vu (*turned)[LANES])
{
    for (int g = 0; g < groups; g++) {
        for (int j = 0; j < LANES; j++)
            if (bytes == 4 * LANES) {
                __builtin_prefetch(o[g].w[j] + groups * LANES * c->pitch + at, 0, 2);
                turned[g][j] = *(const vu_memory *)(o[g].w[j] + at);
            } else {
                turned[g][j] = (vu){0};
                memcpy(&turned[g][j], o[g].w[j] + at, (size_t)bytes);
            }
        TURN(turned[g]);
    }
}

INLINE void chain_codes_rows(const int rows, const int kind, const int wide, const struct few_block *b)
{
    const int groups = few_groups(rows);
    const struct codes *c = b->codes;
    const int64_t depth = LANES * IN_LANE(kind);
    struct chain t = {.b = b, .block = c->given.block_cols, .left = c->given.scales ? 0 : INT64_MAX,
                      .tensor = c->given.tensor_scales ? c->given.tensor_scales[b->expert] : 1.0,
                      .shape = shape_of(c->small)};
    struct sums sum;
    vu turned[MOST_GROUPS][LANES];
    for (int g = 0; g < groups; g++)
        begin_outputs(kind, wide, b, g * LANES, &t, &t.part[g]);
    begin_sums(rows, groups, wide, b->value, &sum);
    int64_t k = 0;
    for (; k + depth <= b->length; k += depth) {
        turn_codes(c, groups, t.part, CODE_BYTES(kind, k), 4 * LANES, turned);
        codes_lanes(rows, groups, kind, wide, &t, k, depth, turned, &sum);
    }
    if (k < b->length) {
        int64_t count = b->length - k;
        turn_codes(c, groups, t.part, CODE_BYTES(kind, k), CODE_BYTES(kind, count + (kind == FOUR)), turned);
        codes_lanes(rows, groups, kind, wide, &t, k, count, turned, &sum);
    }
    end_sums(rows, groups, wide, &sum, b->value);
}
