/* tile.h: what the files of csrc/ share: the shape of a kernel, the number formats, the terms of one output. */

#ifndef REFMOE_TILE_H
#define REFMOE_TILE_H

#if defined(__FAST_MATH__)
#error "refmoe promises bits: compile without -ffast-math and without -Ofast"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "refmoe supports little-endian processors"
#endif

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "refmoe needs float and double arithmetic in their own formats (FLT_EVAL_METHOD 0)"
#endif

#include "doubles.h"
#include "few.h"
#include "pairs.h"
#include "refmoe_kernels.h"

enum { MAX_TILE_ROWS = 12, MAX_TILE_COLS = 32, MAX_SHAPES = 4, NUM_PROFILES = 3, NUM_STORES = 3, MAX_PAIRS = 2 };

/* Bytes that a tile's row of columns fills a multiple of: panels are copied in such runs. */
#if defined(__aarch64__)
enum { RUN_UNIT = 16 };
#else
enum { RUN_UNIT = 32 };
#endif

/* A tile adds a product to a block of accumulators:  acc[i,j] += sum_k a[k,i] b[k,j],  k ascending.
     a    (length, rows) with tile.rows from one k to the next; double for exact and float64, float for chain
     b    (length, cols) with ldb elements from one k to the next; float for exact and chain, double for float64
     acc  (rows, cols), dense; double for exact and float64, float for chain
   1 <= rows <= tile.rows; always tile.cols columns. A tile never pads, skips or splits along k. */
typedef void tile_function(int rows, int64_t length, const void *a, const void *b, int64_t ldb, void *acc);

/* A whole tile from start to end, without what lies between in memory: the product from +0, rounded to the format and
   canonical, stored to out[i * out_row + j]; with `past` stores pass by the caches where they can. In the exact profile
   the rounding test decides as test_function says, and `value` receives the sums if any output is undecided.
   Of a chain as many tiles side by side as there are `panels`, `apart` bytes from one b to the next; of others one. */
struct whole {
    const void *a, *b;
    int64_t length, ldb, apart, out_row;
    const double *row_bound, *col_norm;
    float *out;
    double *value;
    int panels, past, format;
};
typedef void whole_function(int rows, const struct whole *whole, uint32_t *undecided);

struct tile {
    int rows, cols;
    tile_function *multiply;
    whole_function *whole; /* or NULL */
};

/* A tile of lanes.c and outputs.c adds the same kind of sum from a left factor that was copied, from where to where its
   sums are wanted:  to[i,j] = from[i,j] + sum_k left(i,k) right[k,j],  k ascending.
     left      double for exact, float for chain. Along k: left(i,k) lies at i * LEFT_PITCH bytes + k elements; across:
               at k * tile rows + i elements
     right     (length, width), rows right_step elements apart; as left
     from, to  rows from_row and to_row elements apart, of which the first `width` columns are read and written; from
               NULL: +0
     ends      of a chain: bias[j] is added (unless NULL), and NaN is canonical
   Meanwhile it fetches what comes next: a line a step, `lines` of each of ahead_rows rows, `step` bytes apart. (Tiles
   of REFMOE_WIDE neither end a chain nor fetch.) */
struct lane_run {
    int64_t length, right_step, from_row, to_row, step, lines;
    const void *left, *right, *from;
    void *to;
    const float *bias;
    const char *ahead;
    int ahead_rows, ends;
};
typedef void lane_function(int rows, const struct lane_run *run);

/* The same of float32 weights where they lie, along k, of a chain:  to[i,j] = from[i,j] + sum_k w(i,k) right[k,j],
   blocks as wide as the tile; `ends`: bias[i] is added (unless NULL), and NaN is canonical. Meanwhile it fetches as
   many rows from `ahead` on. */
struct direct_run {
    int64_t length, step; /* step: bytes from one row of weights to the next */
    const char *w, *ahead;
    const float *right, *from, *bias;
    float *to;
    int ends;
};
typedef void direct_function(int rows, const struct direct_run *run);

/* One width of such tiles, and the most rows of weights. */
struct direct {
    int width, rows;
    direct_function *multiply;
};
enum { MAX_DIRECT = 8, MAX_DIRECT_COLS = 56 };

enum { REFMOE_WIDE = REFMOE_UNFUSED }; /* the profile that has no lanes of its own lends them its place */

enum { LEFT_BYTES = 1024, LEFT_PITCH = LEFT_BYTES + 64 };

struct lanes {
    int rows, shapes;
    int width[MAX_SHAPES]; /* falling */
    lane_function *along[MAX_SHAPES], *across[MAX_SHAPES];
    struct direct direct[MAX_DIRECT]; /* rising widths, as many as there are */
};

/* Copies `count` rows (along) or columns (across) of `length` numbers for such tiles; in the exact profile as double,
   and squares[i] += sum_k of the squares of the i-th. `step`: elements from one row of the matrix to the next. */
typedef void copy_function(int count, int64_t length, const void *w, int64_t step, void *left, double *squares);

/* The same for weights that are codes with scales (codes.h); squares is NULL in the chain profile. */
struct codes_run;
typedef void copy_codes_function(const struct codes_run *run, void *left, double *squares);

/* to[k * width + j] = x[j * step + k] for TURN_SIZE k and j. */
enum { TURN_SIZE = 16 };
typedef void turn_function(const float *x, int64_t step, float *to, int64_t width);

/* right[c][k,j] = w[k * step + c * width + j] for `count` panels of the widest lanes' width, `apart` bytes from one to
   the next; in the exact profile as double, and squares[c * width + j] += the sum of their squares. */
typedef void panels_function(int count, int64_t length, const void *w, int64_t step, void *right, int64_t apart,
                             double *squares);

/* to[i] = the number that the code from[i] stands for, exactly. */
typedef void widen_function(int64_t count, const void *from, float *to);

/* squares[i] becomes an upper bound of its root, as refmoe_norm_above. */
typedef void norms_function(int count, double *squares);

/* What `length` more terms may add to the error of an exact tile's sums, which stand at `value` now: each addition errs
   by half a unit of a partial sum, and that is at most |value| + row_norm col_norm (of these terms alone).
   error[i,j] += factor * (|value[i,j]| + row_norm[i] * col_norm[j]), on blocks of the exact lanes' widest shape. */
typedef void grow_function(int rows, const double *value, double factor, const double *row_norm,
                           const double *col_norm, double *error);

/* squares[j] = sum_k b[k,j]^2 in float64, any order, for the columns of one exact tile. */
typedef void squares_function(int64_t length, const float *b, int64_t ldb, double *squares);

/* The rounding test on the block of one exact tile: the true value lies within
   row_bound[i] * col_norm[j] (+ extra[i,j], unless NULL) of value[i,j]. Where both ends round alike, out[i,j] is that
   number; elsewhere (and for NaN) bit j of undecided[i] is set. */
typedef void test_function(int rows, const double *value, const double *row_bound, const double *col_norm,
                           const double *extra, int format, float *out, uint32_t *undecided);

/* The end of a chain: result[i,j] = round(value[i,j] + row_bias[i] + col_bias[j]) to the format, NaN canonical; at most
   one bias is not NULL, and it is one addition. Blocks of chain tiles, `pitch` columns: the tile's or the lanes'. */
typedef void settle_function(int rows, int pitch, const float *value, const float *row_bias, const float *col_bias,
                             int format, float *result);

/* The grid of a vector: every element is a multiple of 2^quantum and at most `largest` in magnitude. known = 0: not
   looked at yet. A vector of zeros lies on every grid: quantum INT32_MAX / 4. */
struct grid {
    int32_t known, quantum;
    double largest;
};

/* Takes the first numbers of x, as many as fill whole vectors, into a grid; returns how many. */
typedef int64_t span_function(int64_t count, const float *x, struct grid *grid);

struct kernel {
    const char *name;
    const char *needs;
    int (*runs_here)(void);
    struct tile tile[NUM_PROFILES]; /* indexed by refmoe_profile */
    struct lanes lanes[NUM_PROFILES]; /* of exact, chain, and of chains whose left factors are doubles (REFMOE_WIDE) */
    copy_codes_function *copy_codes;
    copy_function *copy_along[NUM_PROFILES][NUM_STORES], *copy_across[NUM_PROFILES][NUM_STORES];
    turn_function *turn; /* or NULL */
    panels_function *copy_panels[NUM_PROFILES][NUM_STORES];
    widen_function *widen[NUM_STORES]; /* of the codes of 16 bits */
    norms_function *norms;
    grow_function *grow;
    squares_function *squares;
    test_function *test;
    span_function *span; /* or NULL */
    settle_function *settle;
    void (*pass_by)(void); /* orders what whole tiles stored past the caches before all later stores; or NULL */
    const struct few *few; /* NULL: lanes.c computes these too */
    const struct pairs *pairs; /* NULL: likewise */
    const struct doubles *doubles; /* NULL: likewise */
    const struct sums *sums; /* of sums.c */
};

/* One row of a table by format: the functions name_float32, name_bf16 and name_fp16. */
#define OF_EACH_FORMAT(name)                                                                                          \
    {                                                                                                                 \
        [REFMOE_FLOAT32] = name##_float32, [REFMOE_BF16] = name##_bf16, [REFMOE_FP16] = name##_fp16                   \
    }
#define ITSELF(x) (x)

extern const struct kernel refmoe_portable;
#if defined(__x86_64__)
extern const struct kernel refmoe_avx2, refmoe_avx512;
extern const struct few refmoe_few_avx2, refmoe_few_avx512;
extern const struct pairs refmoe_pairs_avx512;
extern const struct doubles refmoe_doubles_avx512;
#endif
#if defined(__aarch64__)
extern const struct kernel refmoe_neon;
#endif
/* A kernel for another processor is one more declaration here, one more row in kernel_table.c, one more stub. */

int refmoe_is_forked_child(void); /* which has no threads: the pool of its parent did not come along */
const struct kernel *refmoe_kernel(int index); /* NULL: no such row, or it cannot run here */

/* A stored format: its precision in bits, the exponent of its least normal number and of its first power of two beyond
   the largest finite number, and for rounding by addition: 2^least, 2^beyond, 3 * 2^(52 - precision). */
struct format {
    int precision, least, beyond;
    double least_normal, overflow, shift;
};

extern const struct format refmoe_formats[NUM_STORES];

/* One output of an exact product: two strided vectors a pair, and two scalars that may be NULL. A second vector may be
   REFMOE_FLOAT64: weights that were codes and scales. */
struct vector_pair {
    const void *a, *b;
    int64_t a_step, b_step, length;
    int a_format, b_format;
};

struct terms {
    int pairs;
    struct vector_pair pair[MAX_PAIRS];
    const float *bias, *acc;
};

static inline uint64_t bits_of_double(double x) { uint64_t b; memcpy(&b, &x, sizeof b); return b; }
static inline double double_of_bits(uint64_t b) { double x; memcpy(&x, &b, sizeof x); return x; }
static inline uint32_t bits_of_float(float x) { uint32_t b; memcpy(&b, &x, sizeof b); return b; }
static inline float float_of_bits(uint32_t b) { float x; memcpy(&x, &b, sizeof x); return x; }

static inline float float_of_bf16(uint16_t code) { return float_of_bits((uint32_t)code << 16); }

/* The exponents of the two formats are 112 apart; a subnormal is a whole number of 2^-24. */
static inline float float_of_fp16(uint16_t code)
{
    uint32_t sign = (uint32_t)(code & 0x8000) << 16, rest = code & 0x7FFF, bits = (rest << 13) + (112u << 23);
    if (rest < 0x400)
        bits = bits_of_float((float)(int32_t)rest * 0x1p-24f);
    if (rest >= 0x7C00)
        bits += 112u << 23;
    return float_of_bits(bits | sign);
}

/* Element `index` of an array of a format of the _f32 functions. */
static inline float number_at(const void *array, int format, int64_t index)
{
    if (format == REFMOE_FLOAT32)
        return ((const float *)array)[index];
    uint16_t code = ((const uint16_t *)array)[index];
    return format == REFMOE_BF16 ? float_of_bf16(code) : float_of_fp16(code);
}

static inline int is_finite(double x) { return (bits_of_double(x) >> 52 & 0x7FF) != 0x7FF; }
static inline double magnitude(double x) { return double_of_bits(bits_of_double(x) & INT64_MAX); }

/* 2^e for -1022 <= e <= 1023. */
static inline double power_of_two(int e) { return double_of_bits((uint64_t)(e + 1023) << 52); }

/* x = sum + error, exactly, for any finite a and b whose sum does not overflow (Knuth). */
static inline double two_sum(double a, double b, double *error)
{
    double sum = a + b, other = sum - a;
    *error = (a - (sum - other)) + (b - other);
    return sum;
}

/* The float64 rounding to odd of sum + error: an inexact, even `sum` moves one step towards its error. A later rounding
   to at most 51 bits is then a rounding of the exact value (Boldo and Melquiond). */
static inline double round_to_odd(double sum, double error)
{
    uint64_t bits = bits_of_double(sum);
    if (error == 0 || (bits & 1))
        return sum;
    return double_of_bits((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

/* The first 29 bits of a number: times a float32 they are exact, and so are the others. */
static inline double high_part(double x)
{
    return is_finite(x) ? double_of_bits(bits_of_double(x) & ~(uint64_t)0xFFFFFF) : x;
}

float refmoe_fused_wide(float x, double w, float c); /* round(x * w + c), once */
float refmoe_round(double x, int format);
float refmoe_canonical(float x);
double refmoe_norm_above(double squares);
struct grid refmoe_grid(const struct kernel *kernel, int count, const struct vector_pair *pair, int second);
float refmoe_resolve(const struct terms *terms, double value, const struct grid *row, const struct grid *col,
                     int format, int force, refmoe_report *report);

#endif
