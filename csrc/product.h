/* product.h: one description for the three grouped products, and the piece that a thread computes at a time. */

#ifndef REFMOE_PRODUCT_H
#define REFMOE_PRODUCT_H

#include <stdatomic.h>

#include "codes.h"
#include "tile.h"

/* Two factors of a sum over `length`: element (i, k) of a is a[i * a_row + k * a_step], element (k, j) of b is
   b[k * b_step + j * b_col]. Steps count elements of the formats, pointers count bytes. Of weights that are codes with
   scales, codes says where they lie, and b is not read. */
struct operand {
    const char *a, *b;
    int64_t a_row, a_step, b_step, b_col, length;
    int a_format, b_format;
    const struct codes *codes; /* or NULL: b points at numbers. Of this expert, outputs from its `first` on: */
    int64_t expert, first;
};

/* out[i,j] = sum of the pairs + acc[i,j] + bias[j] for each expert's block of the output. With sum_rows = 0 an expert
   owns the rows offsets[e]..offsets[e+1] of a and out and the matrix e of b; with sum_rows = 1 these rows are what is
   summed over, and every expert owns `rows` rows of out. */
struct product {
    const struct kernel *kernel;
    const struct tile *tile;
    int profile, format, force, threads, pairs, sum_rows;
    int across; /* REFMOE_LANES_..., or 0 for unit.c */
    int paired; /* pairs.c first */
    int doubles; /* doubles.c */
    int wide;   /* a chain of weights that only doubles hold */
    size_t item; /* bytes of an element of acc, bias and out */
    int64_t experts, rows, cols;
    const int64_t *offsets;
    struct operand pair[MAX_PAIRS];
    struct codes codes[MAX_PAIRS];
    const char *bias, *acc;
    char *out;
};

/* Part of an expert's block: rows x cols outputs. Pointers stand at its first element; out_row elements lie from one
   row of out (and acc) to the next. */
struct unit {
    int64_t rows, cols, out_row;
    struct operand pair[MAX_PAIRS];
    const char *bias, *acc;
    char *out;
};

/* Products of lanes.c: the weights of an output lie side by side, or those of neighbouring outputs do. */
enum { REFMOE_LANES_ALONG = 1, REFMOE_LANES_ACROSS = 2 };

/* Of outputs.c: rows of an expert from which on its weights are worth turning or copying. */
enum { MANY_ROWS = 96 };

enum { MAX_UNIT_ROWS = 512, MAX_UNIT_COLS = 256, MAX_LANE_ROWS = 256, PANELS_BYTES = 1 << 18 };

/* How an expert's block is cut: units of `rows` x `cols`, both whole tiles. */
struct cut {
    int64_t rows, cols, length; /* length: of the longest sum */
};

/* The columns that one tile reads. */
struct panel {
    const char *b[MAX_PAIRS];
    int64_t ldb[MAX_PAIRS];
    int64_t first; /* column of the unit */
    int cols;      /* of them real, the rest padding */
};

/* Units that one thread begins with; whoever takes the next one counts it. */
struct share {
    atomic_llong next;
    int64_t end;
};

/* What one thread works in. Packed rows are tiles of the unit's rows, k after k; packed columns likewise. */
struct scratch {
    struct share share[2]; /* a second one where units of another product follow */
    void *packed_rows, *packed_cols;
    double row_bound[MAX_UNIT_ROWS], col_norm[MAX_UNIT_COLS + MAX_TILE_COLS];
    struct grid row_grid[MAX_UNIT_ROWS], col_grid[MAX_UNIT_COLS];
    char *left, *right, *value; /* of lanes.c and outputs.c: copied weights, rows of x, sums; */
    double *error, *norm;       /* what the sums err by, and the norms of the rows, block by block of k */
    const char *next;           /* of few.c: weights that are read after the unit's, or NULL where nobody knows */
    const char *held;           /* the rows of x that `right` holds (few.c: likewise), and how many */
    int64_t held_rows;
    int held_wide;              /* as doubles, for a chain (few.c) */
    const uint32_t *held_words; /* of few.c: the rows as words of two k, which `right` then holds instead, or NULL */
    double *decoded;            /* the weights of one output, where they are codes, and its number from 1 on */
    int64_t decoded_number;
    uint32_t *pair_rows, *pair_panels; /* of pairs.c: words of the first factor, and of the second */
    uint32_t *pair_staged;
    float *pair_sums;
    const char *pair_held; /* the rows that pair_rows holds, how many, and whether they, and what they met, are safe */
    int64_t pair_count;
    int pair_safe;
    const char *pair_next; /* weights of which the next panel is made, where it is, and whether they are safe */
    int pair_next_half, pair_next_safe;
    refmoe_report report;
};

/* Bytes of a line of the cache, at which each part of the scratch memory begins. */
enum { CACHE_LINE = 64 };

/* The scratch memory of `count` threads: its bytes, -1 if no memory is as large; and its parts, laid out at `at`. */
int64_t refmoe_workspace_bytes(const struct product *product, const struct cut *cut, int count);
struct scratch *refmoe_lay_out(const struct product *product, const struct cut *cut, int count, void *at);

struct cut refmoe_cut(const struct product *product);
int64_t refmoe_units(const struct product *product, const struct cut *cut, int64_t expert);
struct unit refmoe_make_unit(const struct product *product, const struct cut *cut, int64_t expert, int64_t index);

void refmoe_pack_rows(const struct product *product, const struct unit *unit, void *room, double *squares);
int refmoe_make_panels(const struct product *product, const struct unit *unit, int64_t first, struct panel *panel,
                       char *room);
int64_t refmoe_panels_at_once(const struct product *product, int64_t length);

/* Bytes that a unit of lanes.c, or of outputs.c, works in. */
struct lane_room {
    int64_t right, left, value, error, norm;
};

/* Rows of a matrix, `step` elements apart. */
struct rows {
    const struct kernel *kernel;
    const char *x;
    int format;
    int64_t step;
};

/* right[k,j] = x[j * step + k], 0 for cols <= j < width, a multiple of 4; squares[j] = sum_k x[j * step + k]^2. */
void refmoe_turn_chain(int64_t length, int cols, int width, struct rows from, float *right);
void refmoe_turn_exact(int64_t length, int cols, int width, struct rows from, double *right, double *squares);

/* The same of rows that are not to be turned: right[k,j] = x[k * step + j], as double with squares if exact. */
void refmoe_copy_columns(int64_t length, int cols, int width, struct rows from, int exact, void *right,
                         double *squares);

/* out[j * out_row + i] = result[i * pitch + j] for i < rows, j < cols. */
void refmoe_store_turned(int rows, int cols, int64_t pitch, const float *result, float *out, int64_t out_row);

/* The error of a sum of doubles, half a unit a term, and a little for the roundings of this bound itself. (Products of
   weights that are codes may have more bits than a double: where no instruction fuses, they are rounded too, all of
   them together by less than one term more.) */
#define HALF_UNIT 0x1.03p-53

/* A block of sums in the exact profile, and what they err by. Element (i, j) is the output in row `row` + i and column
   `col` + j of the unit; turned, in row `row` + j and column `col` + i. slot: where its columns' grids are kept. */
struct sums_block {
    int rows, cols, pitch, turned, slot;
    int64_t row, col;
    double *value, *error;
};

/* Adds the bias, rounds, and decides what rounding left open. */
void refmoe_decide(const struct product *product, const struct unit *unit, struct scratch *scratch,
                   const struct sums_block *block, float *result);

void refmoe_compute_unit(const struct product *product, const struct unit *unit, struct scratch *scratch);
void refmoe_compute_lanes(const struct product *product, const struct unit *unit, struct scratch *scratch);
int refmoe_is_across_outputs(const struct product *product, const struct unit *unit);
void refmoe_compute_outputs(const struct product *product, const struct unit *unit, struct scratch *scratch);
struct lane_room refmoe_output_room(const struct product *product, int64_t length);
int64_t refmoe_lane_rows(const struct product *product, int64_t length);
int64_t refmoe_lane_cols(const struct product *product);
struct lane_room refmoe_lane_room(const struct product *product, int64_t length);

/* Products of pairs.c: whether this is one, what its units work in, and how many columns of a unit are done: the others
   are for lanes.c, outputs.c or unit.c. */
int refmoe_is_paired(const struct product *product);
struct lane_room refmoe_pairs_room(const struct product *product, const struct cut *cut);
int64_t refmoe_compute_pairs(const struct product *product, const struct unit *unit, struct scratch *scratch);

/* Products of doubles.c: whether this is one, and what its units work in. */
int refmoe_is_doubles(const struct product *product);
struct lane_room refmoe_doubles_room(const struct product *product, int64_t length);
void refmoe_compute_doubles(const struct product *product, const struct unit *unit, struct scratch *scratch);

/* Products of few.c: the most rows of an expert (0: none), and the bytes
   that its rows of x take. */
int64_t refmoe_few_rows(const struct product *product);
int64_t refmoe_few_room(const struct product *product, int64_t length);
void refmoe_compute_few(const struct product *product, const struct unit *unit, struct scratch *scratch);

/* The weights of one output of the unit, one pair after the other, where they are codes: they stay until the next
   call. */
const double *refmoe_decoded(const struct product *product, const struct unit *unit, struct scratch *scratch,
                             int64_t col);
double refmoe_error_factor(const struct product *product, int64_t length);
float refmoe_resolve_output(const struct product *product, const struct unit *unit, struct scratch *scratch,
                            int64_t row, int64_t col, double value, int slot);

/* Of grouped_matmul.c: checks the forward product and describes it in *product, which then stays where it is. */
int refmoe_describe_forward(const refmoe_how *how, size_t item, int64_t e, int64_t n, int64_t m, int64_t k,
                            const int64_t *offsets, const void *x, const void *w, const void *bias, const void *acc,
                            void *out, struct product *product);

/* Of threads.c: computes a product; or, piece by piece: how many threads share so many units, the scratch memory of a
   call (room NULL: it is not to go on), which units each begins with, the threads, and what they report. A function of
   a team takes at most so many units of its thread's share, and with INT64_MAX all there are; it finds the environment
   set. */
typedef void team_function(const void *call, int thread, int64_t most);
int refmoe_run(const struct product *product, refmoe_workspace *workspace, refmoe_report *report);
int refmoe_team_size(int threads, int64_t units);
int refmoe_enter_room(refmoe_workspace *workspace, int64_t bytes, void **room);
void refmoe_leave_room(const refmoe_workspace *workspace, void *room);
void refmoe_share_out(struct scratch *scratch, int stage, int64_t units, int threads);
void refmoe_run_team(team_function *function, const void *call, int threads);
refmoe_report refmoe_add_reports(const struct scratch *scratch, int threads, int64_t bytes);

static inline int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t higher(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t whole_tiles(int64_t count, int64_t tile) { return (count + tile - 1) / tile * tile; }

/* Bytes of an element of an operand. */
static inline int64_t item_of(int format)
{
    return format == REFMOE_FLOAT64 ? 8 : format == REFMOE_FLOAT32 ? 4 : 2;
}

/* Bytes of a weight that lanes.c copied. */
static inline int64_t left_item(const struct product *p)
{
    return p->profile == REFMOE_CHAIN && !p->wide ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
}

/* Whether tiles of lanes.c read the weights where they lie (tile_direct.h). */
static inline int is_direct_product(const struct product *p)
{
    return p->across == REFMOE_LANES_ALONG && p->profile == REFMOE_CHAIN && !p->wide && !p->pair[0].codes
           && p->pair[0].b_format == REFMOE_FLOAT32 && p->kernel->lanes[REFMOE_CHAIN].direct[0].width;
}

/* Whether those of outputs.c do: weights of a chain back to x that few rows meet. */
static inline int is_in_place_product(const struct product *p)
{
    return p->across == REFMOE_LANES_ACROSS && p->profile == REFMOE_CHAIN && !p->pair[0].codes
           && p->pair[0].b_format == REFMOE_FLOAT32 && p->offsets[p->experts] < MANY_ROWS * p->experts;
}

/* Bytes of a packed element of the rows, and of an accumulator. */
static inline int64_t packed_item(const struct product *p)
{
    return p->profile == REFMOE_CHAIN ? (int64_t)sizeof(float) : (int64_t)sizeof(double);
}

/* How many of `count` lines, `step` bytes apart, meet at one place of the first cache (64 places, in most
   processors). */
enum { CACHE_SETS = 64, CACHE_WAYS = 8 };
static inline int meeting_lines(int64_t count, int64_t step)
{
    int meet[CACHE_SETS] = {0}, most = 0;
    for (int64_t i = 0; i < count; i++) {
        int at = ++meet[i * step / CACHE_LINE % CACHE_SETS];
        most = at > most ? at : most;
    }
    return most;
}

static inline int64_t total_length(const struct product *p, const struct unit *u)
{
    return u->pair[0].length + (p->pairs > 1 ? u->pair[1].length : 0);
}

#endif
