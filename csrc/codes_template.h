/* codes_template.h: weights of 8 bits and less for the tiles of lanes.c, written once for every kernel, the portable
   one included. Its includer defines TARGET, INLINE and LANE_ROWS (tile_template.h). Plain loops, which compilers turn
   into vectors of what TARGET allows. */

#include "codes.h"

enum { DECODE_RUN = 256 };

/* Codes of 4 bits, each in a byte of its own, from the `first` (0 or 1) of the leading byte on. */
INLINE const uint8_t *spread_halves(const uint8_t *pairs, int first, int count, uint8_t *room)
{
    for (int i = 0; i < (first + count + 1) / 2; i++)
        room[2 * i] = pairs[i] & 15, room[2 * i + 1] = pairs[i] >> 4;
    return room + first;
}

/* What codes stand for, before any scale. */
INLINE void read_codes(const struct small *s, int count, const uint8_t *code, float *to)
{
    const uint32_t half = UINT32_C(1) << (s->bits - 1);
    const int up = 23 - s->fraction, sign = 32 - s->bits;
    const uint32_t none = s->none, infinite = s->infinite;
    const float power = s->power;
    if (s->integer) {
        for (int i = 0; i < count; i++)
            to[i] = (float)((int32_t)(code[i] & (half - 1)) - (int32_t)(code[i] & half));
        return;
    }
    for (int i = 0; i < count; i++) {
        uint32_t size = code[i] & (half - 1);
        uint32_t bits = bits_of_float(float_of_bits(size << up) * power);
        bits = size == infinite ? 0x7F800000 : bits;
        bits = size >= none ? 0x7FC00000 : bits;
        to[i] = float_of_bits(bits | (code[i] & half) << sign);
    }
}

/* Products of codes and scales from (row, col) on to the right: doubles, or floats that hold them. */
INLINE void decode_row(const struct codes *c, int64_t expert, int64_t row, int64_t col, int count, const int doubles,
                       void *to)
{
    const uint8_t *codes = row_of_codes(c, expert, row);
    uint8_t room[DECODE_RUN + 2];
    float number[DECODE_RUN];
    codes = c->small->bits == 4 ? spread_halves(codes + col / 2, (int)(col % 2), count, room) : codes + col;
    read_codes(c->small, count, codes, number);
    for (int i = 0, end; i < count; i = end) {
        int64_t block = c->given.scales ? (col + i) / c->given.block_cols : 0;
        int64_t left = c->given.scales ? (block + 1) * c->given.block_cols - (col + i) : count;
        double scale = refmoe_scale_at(c, expert, row, block);
        end = left < count - i ? i + (int)left : count;
        if (doubles)
            for (int k = i; k < end; k++)
                ((double *)to)[k] = (double)number[k] * scale;
        else
            for (int k = i; k < end; k++)
                ((float *)to)[k] = number[k] * (float)scale;
    }
}

/* Eight sums that do not wait for one another. */
INLINE double squares_of(int count, const double *x)
{
    double sum[8] = {0}, rest = 0.0;
    int k = 0;
    for (; k + 8 <= count; k += 8)
        for (int i = 0; i < 8; i++)
            sum[i] += x[k + i] * x[k + i];
    for (; k < count; k++)
        rest += x[k] * x[k];
    for (int i = 0; i < 8; i++)
        rest += sum[i];
    return rest;
}

INLINE void copy_codes_along(const struct codes_run *r, const int doubles, char *left, double *squares)
{
    for (int i = 0; i < r->count; i++, left += LEFT_PITCH) {
        decode_row(r->codes, r->expert, r->row + i, r->col, (int)r->length, doubles, left);
        if (squares)
            squares[i] += squares_of((int)r->length, (const double *)left);
    }
}

/* Bands of LANE_ROWS columns, each (length, LANE_ROWS). */
INLINE void copy_codes_across(const struct codes_run *r, const int doubles, char *left, double *squares)
{
    const size_t item = doubles ? sizeof(double) : sizeof(float);
    double room[DECODE_RUN];
    for (int64_t k = 0; k < r->length; k++) {
        decode_row(r->codes, r->expert, r->row + k, r->col, r->count, doubles, room);
        for (int j = 0; j < r->count; j += LANE_ROWS) {
            int cols = r->count - j < LANE_ROWS ? r->count - j : LANE_ROWS;
            char *to = left + (size_t)(j * r->length + k * LANE_ROWS) * item;
            if (cols == LANE_ROWS)
                memcpy(to, (const char *)room + (size_t)j * item, LANE_ROWS * item);
            else
                memcpy(to, (const char *)room + (size_t)j * item, (size_t)cols * item);
        }
        for (int j = 0; squares && j < r->count; j++)
            squares[j] += room[j] * room[j];
    }
}

static TARGET void copy_codes(const struct codes_run *r, void *left, double *squares)
{
    if (r->along)
        r->doubles ? copy_codes_along(r, 1, left, squares) : copy_codes_along(r, 0, left, NULL);
    else
        r->doubles ? copy_codes_across(r, 1, left, squares) : copy_codes_across(r, 0, left, NULL);
}
