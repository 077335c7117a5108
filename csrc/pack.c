/* pack.c: the factors of a unit as a tile reads them. Only places change, and in the exact profile the width. */

#include "product.h"
#include "turn.h"

enum {
    PACK_RUN = 64, /* k of one run of a transposition */
    PACK_LINES = 8, /* lines that the first cache holds even if all belong to the same place of it */
    AHEAD = 8,     /* k fetched before they are copied */
    FEW = 32       /* k that stay in the first cache unless they all belong to the same place of it */
};

/* Rows whose numbers of one k lie side by side: the columns of d, of which gradients of weights are made. So few k at a
   time that their lines stay at hand from one tile to the next, wherever they lie. squares (exact): of each row. */
static void pack_columns(const struct product *p, const struct unit *u, char *room, double *squares)
{
    const struct operand *o = &u->pair[0];
    copy_function *copy = p->kernel->copy_across[p->profile][o->a_format];
    int64_t tile = p->tile->rows, item = item_of(o->a_format);
    for (int64_t k = 0; k < o->length; k += PACK_LINES)
        for (int64_t row = 0; row < u->rows; row += tile) {
            const char *at = o->a + (k * o->a_step + row) * item;
            for (int64_t next = PACK_LINES; next < 2 * PACK_LINES; next++)
                __builtin_prefetch(at + next * o->a_step * item, 0, 3);
            copy((int)lower(tile, u->rows - row), lower(PACK_LINES, o->length - k), at, o->a_step,
                 room + (row * o->length + k * tile) * packed_item(p), squares + row);
        }
}

static void pack_doubles(const struct operand *o, int64_t first, int rows, int64_t pitch, double *to)
{
    const double *a = (const double *)o->a + first * o->a_row;
    for (int64_t k = 0; k < o->length; k++, a += o->a_step, to += pitch)
        for (int i = 0; i < rows; i++)
            to[i] = a[i * o->a_row];
}

/* The unit's rows, tile by tile, the first pair before the second; squares[i] += the squares of row i (exact). */
void refmoe_pack_rows(const struct product *p, const struct unit *u, void *room, double *squares)
{
    int64_t tile = p->tile->rows;
    double *to = room;
    if (p->profile != REFMOE_UNFUSED) {
        pack_columns(p, u, room, squares);
        return;
    }
    for (int64_t row = 0; row < u->rows; row += tile)
        for (int q = 0; q < p->pairs; to += u->pair[q++].length * tile)
            pack_doubles(&u->pair[q], row, (int)lower(tile, u->rows - row), tile, to);
}

/* dst (length, width) = columns first .. cols of b, then columns of zeros up to the tile's width: padding beside the
   output, never along the sum. Short runs of k keep both sides of the transposition in cache. */
#define DEFINE_TURN(name, item, type, number)                                                                         \
    static void name(const item *b, int64_t b_step, int64_t b_col, int64_t from, int64_t to, int first, int cols,     \
                     int width, type *dst)                                                                            \
    {                                                                                                                 \
        for (int j = first; j < width; j++)                                                                           \
            for (int64_t k = from; k < to; k++)                                                                       \
                dst[k * width + j] = j < cols ? number(b[k * b_step + j * b_col]) : 0;                                \
    }

DEFINE_TURN(turn_float, float, float, ITSELF)
DEFINE_TURN(turn_bf16, uint16_t, float, float_of_bf16)
DEFINE_TURN(turn_fp16, uint16_t, float, float_of_fp16)
DEFINE_TURN(turn_double, double, double, ITSELF)

/* A panel of float columns that each lie along k, as weights do in the forward product. */
static void turn_along_k(const float *b, int64_t b_col, int64_t length, int cols, int width, float *dst)
{
    int whole = cols / 4 * 4;
    int64_t fours = length / 4 * 4;
    for (int64_t from = 0; from < fours; from += PACK_RUN)
        for (int j = 0; j < whole; j += 4)
            for (int64_t k = from; k < lower(from + PACK_RUN, fours); k += 4)
                turn_four(b + k + j * b_col, b_col, width, dst + k * width + j);
    turn_float(b, 1, b_col, 0, fours, whole, cols, width, dst);
    turn_float(b, 1, b_col, fours, length, 0, cols, width, dst);
}

/* ---- rows of x across the lanes (lanes.c) ---- */

/* Four k of four rows of x from `from` on, rows beyond `cols` being zero. */
static void turn_rows(const float *x, int64_t step, int64_t from, int64_t to, int cols, four *turned)
{
    float block[4][4] = {{0}};
    for (int j = 0; j < cols; j++)
        for (int64_t k = from; k < to; k++)
            block[k - from][j] = x[j * step + k];
    memcpy(turned, block, sizeof block);
}

static void turn_whole(const float *x, int64_t step, four *turned)
{
    turn_four(x, step, 4, (float *)turned);
}

/* Up to four rows, `count` of k: where they lie, or widened into `room`. */
struct view {
    const float *at;
    int64_t step;
};

static struct view view_rows(const struct rows *from, int64_t first, int64_t k, int rows, int64_t count, float *room)
{
    const char *x = from->x + (first * from->step + k) * item_of(from->format);
    if (from->format == REFMOE_FLOAT32)
        return (struct view){(const float *)x, from->step};
    for (int j = 0; j < rows; j++)
        from->kernel->widen[from->format](count, x + j * from->step * item_of(from->format), room + j * PACK_RUN);
    return (struct view){room, PACK_RUN};
}

/* Calls `use` (a statement) with `k`, `j` and turned[0..steps-1], each four j wide, for every four k from `begin` on
   and every four rows from `first` on. */
#define FOR_EACH_BLOCK(begin, length, first, use)                                                                     \
    float room[4 * PACK_RUN];                                                                                         \
    for (int64_t run = begin; run < length; run += PACK_RUN)                                                          \
        for (int j = first; j < width; j += 4) {                                                                      \
            int rows = (int)lower(4, cols - j);                                                                       \
            int64_t end = lower(run + PACK_RUN, length);                                                              \
            struct view x = view_rows(&from, j, run, rows, end - run, room);                                          \
            for (int64_t k = run; k < end; k += 4) {                                                                  \
                int steps = (int)lower(4, end - k);                                                                   \
                four turned[4];                                                                                       \
                if (steps == 4 && rows == 4)                                                                          \
                    turn_whole(x.at + (k - run), x.step, turned);                                                     \
                else                                                                                                  \
                    turn_rows(x.at, x.step, k - run, k - run + steps, rows, turned);                                  \
                for (int t = 0; t < steps; t++) {                                                                     \
                    use                                                                                               \
                }                                                                                                     \
            }                                                                                                         \
        }

static void turn_fours(int64_t begin, int64_t end_, int first, int cols, int width, struct rows from, float *right)
{
    FOR_EACH_BLOCK(begin, end_, first, memcpy(right + (k + t) * width + j, &turned[t], sizeof turned[t]);)
}

/* Large blocks where the kernel turns such, then the others. */
void refmoe_turn_chain(int64_t length, int cols, int width, struct rows from, float *right)
{
    int large = from.kernel->turn && from.format == REFMOE_FLOAT32, first = large ? cols / TURN_SIZE * TURN_SIZE : 0;
    int64_t begin = first ? length / TURN_SIZE * TURN_SIZE : 0;
    for (int j = 0; j < first; j += TURN_SIZE)
        for (int64_t k = 0; k < begin; k += TURN_SIZE)
            from.kernel->turn((const float *)from.x + j * from.step + k, from.step, right + k * width + j, width);
    turn_fours(0, begin, first, cols, width, from, right);
    turn_fours(begin, length, 0, cols, width, from, right);
}

void refmoe_turn_exact(int64_t length, int cols, int width, struct rows from, double *right, double *squares)
{
    for (int j = 0; j < width; j++)
        squares[j] = 0.0;
    FOR_EACH_BLOCK(0, length, 0, for (int i = 0; i < 4; i++) {
        double value = (double)turned[t][i];
        right[(k + t) * width + j + i] = value;
        squares[j + i] += value * value;
    })
}

void refmoe_copy_columns(int64_t length, int cols, int width, struct rows from, int exact, void *right, double *squares)
{
    for (int64_t k = 0; k < length; k++)
        for (int j = 0; j < width; j++) {
            float value = j < cols ? number_at(from.x, from.format, k * from.step + j) : 0.0f;
            if (exact)
                ((double *)right)[k * width + j] = (double)value, squares[j] += (double)value * (double)value;
            else
                ((float *)right)[k * width + j] = value;
        }
}

/* ---- outputs whose columns lie in the rows of a block (lanes.c) ---- */

static void store_rest(int first, int rows, int cols, int64_t pitch, const float *result, float *out, int64_t out_row)
{
    for (int j = 0; j < cols; j++)
        for (int i = first; i < rows; i++)
            out[j * out_row + i] = result[i * pitch + j];
}

void refmoe_store_turned(int rows, int cols, int64_t pitch, const float *result, float *out, int64_t out_row)
{
    int fours = cols / 4 * 4, whole = rows / 4 * 4;
    for (int j = 0; j < fours; j += 4)
        for (int i = 0; i < whole; i += 4)
            turn_four(result + i * pitch + j, pitch, out_row, out + j * out_row + i);
    store_rest(whole, rows, fours, pitch, result, out, out_row);
    store_rest(0, rows, cols - fours, pitch, result + fours, out + fours * out_row, out_row);
}

static void pack_panel(const struct product *p, const struct operand *o, int64_t first, int cols, char *dst)
{
    int width = p->tile->cols;
    const char *b = o->b + first * o->b_col * item_of(o->b_format);
    if (o->b_format == REFMOE_FLOAT32 && o->b_step == 1) {
        turn_along_k((const float *)b, o->b_col, o->length, cols, width, (float *)dst);
        return;
    }
#define TURN(name, item, type)                                                                                        \
    name((const item *)b, o->b_step, o->b_col, from, lower(from + PACK_RUN, o->length), 0, cols, width, (type *)dst)
    for (int64_t from = 0; from < o->length; from += PACK_RUN) {
        if (o->b_format == REFMOE_FLOAT32)
            TURN(turn_float, float, float);
        else if (o->b_format == REFMOE_BF16)
            TURN(turn_bf16, uint16_t, float);
        else if (o->b_format == REFMOE_FP16)
            TURN(turn_fp16, uint16_t, float);
        else
            TURN(turn_double, double, double);
    }
}

/* `count` whole panels of columns that lie side by side: each k is read in one go, each panel lands dense. */
static void copy_panels(const struct product *p, const struct operand *o, int64_t first, int count, char *dst,
                        int64_t room)
{
    int64_t item = (int64_t)p->item, run = p->tile->cols * item;
    const char *b = o->b + first * item;
    for (int64_t k = 0; k < o->length; k++, b += o->b_step * item, dst += run)
        for (int c = 0; c < count; c++) {
            __builtin_prefetch(b + c * run + AHEAD * o->b_step * item, 0, 2);
            for (int64_t at = 0; at < run; at += RUN_UNIT)
                memcpy(dst + c * room + at, b + c * run + at, RUN_UNIT);
        }
}

/* The same for columns of codes, which become numbers on the way. */
static void widen_panels(const struct product *p, const struct operand *o, int64_t first, int count, char *dst,
                         int64_t room)
{
    int64_t width = p->tile->cols, item = item_of(o->b_format);
    const char *b = o->b + first * item;
    for (int64_t k = 0; k < o->length; k++, b += o->b_step * item, dst += width * (int64_t)sizeof(float))
        for (int c = 0; c < count; c++) {
            __builtin_prefetch(b + c * width * item + AHEAD * o->b_step * item, 0, 2);
            p->kernel->widen[o->b_format](width, b + c * width * item, (float *)(dst + c * room));
        }
}

/* Columns may be read where they lie if they are whole, side by side, and used once or few k: long strides map every k
   to the same few places of the cache, and strides of a power of two even these, so what is read again is better
   packed. */
static int is_direct(const struct product *p, const struct unit *u, const struct operand *o)
{
    int used_once = u->rows <= p->tile->rows && p->profile != REFMOE_EXACT; /* `exact` also reads them for the norms */
    if (o->b_col != 1 || item_of(o->b_format) != (int64_t)p->item)
        return 0;
    return used_once || (o->length <= FEW && meeting_lines(o->length, o->b_step * (int64_t)p->item) <= CACHE_WAYS);
}

/* As many panels as stay in the second cache together, at least one. */
int64_t refmoe_panels_at_once(const struct product *p, int64_t length)
{
    int64_t bytes = length * p->tile->cols * (int64_t)p->item, most = MAX_UNIT_COLS / p->tile->cols;
    int64_t fit = bytes > 0 ? PANELS_BYTES / bytes : most;
    return fit < 1 ? 1 : lower(fit, most);
}

/* The panels from column `first` on, packed into `room` where they must be; returns how many. */
int refmoe_make_panels(const struct product *p, const struct unit *u, int64_t first, struct panel *panel, char *room)
{
    int64_t width = p->tile->cols, item = (int64_t)p->item, at_once = refmoe_panels_at_once(p, total_length(p, u));
    int whole = (int)lower((u->cols - first) / width, at_once);
    int count = (int)lower((u->cols - first + width - 1) / width, at_once);
    for (int c = 0; c < count; c++)
        panel[c].first = first + c * width, panel[c].cols = (int)lower(width, u->cols - first - c * width);
    for (int q = 0; q < p->pairs; q++) {
        const struct operand *o = &u->pair[q];
        int64_t apart = o->length * width * item;
        int direct = is_direct(p, u, o) ? whole : 0;
        for (int c = 0; c < count; c++) {
            panel[c].b[q] = c < direct ? o->b + panel[c].first * item : room + c * apart;
            panel[c].ldb[q] = c < direct ? o->b_step : width;
        }
        int copied = o->b_col == 1 ? whole : 0;
        if (copied > direct)
            (item_of(o->b_format) == item ? copy_panels : widen_panels)(p, o, first, copied, room, apart);
        for (int c = copied; c < count; c++)
            pack_panel(p, o, panel[c].first, panel[c].cols, room + c * apart);
        room += count * apart;
    }
    return count;
}
