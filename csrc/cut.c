/* cut.c: how the output of a product is cut into units, and where each of them lies. */

#include "product.h"

enum { UNITS_A_THREAD = 4 };

static int64_t rows_of(const struct product *p, int64_t e) { return p->offsets[e + 1] - p->offsets[e]; }

static int64_t most_rows_of_an_expert(const struct product *p)
{
    int64_t most = 0;
    for (int64_t e = 0; e < p->experts; e++)
        if (rows_of(p, e) > most)
            most = rows_of(p, e);
    return most;
}

static int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

static int64_t parts_of(const struct product *p, const struct cut *cut, int64_t rows)
{
    return parts(rows, cut->rows) * parts(p->cols, cut->cols);
}

/* At most `size`, whole tiles, and as even as those allow. */
static int64_t even(int64_t count, int64_t size, int64_t tile)
{
    return count > 0 ? whole_tiles(parts(count, parts(count, size)), tile) : tile;
}

/* Units so small that the largest is at most one part in UNITS_A_THREAD of what a thread has to do. Columns are cut
   first: a thread that goes on with the same rows has packed them already. One thread shares with nobody. */
static struct cut share_out(const struct product *p, struct cut cut, int64_t most)
{
    int64_t rows = p->sum_rows ? p->rows : most, all = p->offsets[p->experts];
    double needed = all > 0 && p->threads > 1 ? (double)UNITS_A_THREAD * p->threads * (double)most / (double)all : 0;
    while ((double)parts_of(p, &cut, rows) < needed) {
        int by_cols = cut.cols > p->tile->cols;
        int64_t *side = by_cols ? &cut.cols : &cut.rows, tile = by_cols ? p->tile->cols : p->tile->rows;
        if (*side <= tile)
            break;
        *side = whole_tiles(parts(*side, 2), tile);
    }
    return cut;
}

/* Packed rows of a unit take up to 2 MiB: enough to pay for the packed columns they meet, and still in cache. */
struct cut refmoe_cut(const struct product *p)
{
    int64_t most = most_rows_of_an_expert(p), tile = p->tile->rows;
    int64_t length = p->sum_rows ? most : p->pair[0].length + (p->pairs > 1 ? p->pair[1].length : 0);
    if (p->across)
        return (struct cut){refmoe_lane_rows(p, length), refmoe_lane_cols(p), length};
    int64_t fit = (INT64_C(1) << 18) / (length > 0 ? length : 1) / tile * tile;
    int64_t rows = lower(fit < tile ? tile : fit, MAX_UNIT_ROWS / tile * tile);
    int64_t cols = even(p->cols, MAX_UNIT_COLS, p->tile->cols);
    return share_out(p, (struct cut){even(p->sum_rows ? p->rows : most, rows, tile), cols, length}, most);
}

int64_t refmoe_units(const struct product *p, const struct cut *cut, int64_t e)
{
    return parts_of(p, cut, p->sum_rows ? p->rows : rows_of(p, e));
}

/* Unit number `index` of expert e; units that share rows follow one another. */
struct unit refmoe_make_unit(const struct product *p, const struct cut *cut, int64_t e, int64_t index)
{
    int64_t across = parts(p->cols, cut->cols), row = index / across * cut->rows, col = index % across * cut->cols;
    int64_t owned = rows_of(p, e), begin = p->offsets[e], item = (int64_t)p->item;
    int64_t rows = p->sum_rows ? p->rows : owned;
    int64_t first = ((p->sum_rows ? e * p->rows : begin) + row) * p->cols + col;
    struct unit u = {.rows = lower(cut->rows, rows - row), .cols = lower(cut->cols, p->cols - col), .out_row = p->cols};
    for (int q = 0; q < p->pairs; q++) {
        struct operand o = p->pair[q];
        int64_t a = row * o.a_row + begin * (p->sum_rows ? o.a_step : o.a_row);
        int64_t b = col * o.b_col + (p->sum_rows ? begin * o.b_step : e * o.length * p->cols);
        o.length = p->sum_rows ? owned : o.length;
        o.a += a * item_of(o.a_format), o.b += o.codes ? 0 : b * item_of(o.b_format);
        o.expert = e, o.first = col;
        u.pair[q] = o;
    }
    u.bias = p->bias ? p->bias + (e * p->cols + col) * item : NULL;
    u.acc = p->acc ? p->acc + first * item : NULL;
    u.out = p->out + first * item;
    return u;
}
