/* refmoe_kernels.h: the three grouped products, the manual.

   A grouped product is a list of matrix products, one an expert. Rows are sorted by expert: expert e owns the
   rows offsets[e] .. offsets[e+1], and e(n) is the owner of row n. Arrays are row-major and dense; sizes count
   elements. E experts, N rows, M and K the two sides of a weight matrix.

     grouped_matmul             out[n,m]   = sum_k x[n,k] w[e(n),m,k]              + acc[n,m] + bias[e(n),m]
     grouped_matmul_backward_x  out[n,k]   = sum_pairs sum_m d[n,m] w[e(n),m,k]    + acc[n,k]
     grouped_matmul_backward_w  out[e,m,k] = sum_{n of e} d[n,m] x[n,k]            + acc[e,m,k]

   bias and acc may be NULL. A sum over nothing (K = 0, an expert without rows) is acc plus bias, or +0.

   Operands of the _f32 functions. `how` names the formats of the first and of the second operand array of each product,
   x and w, d and w, d and x: `left_format` and `right_format`, each REFMOE_FLOAT32, REFMOE_BF16 or REFMOE_FP16, the
   narrow ones as codes of 16 bits. What a code stands for enters the sum, subnormals, infinities and NaN included. acc,
   bias and out are float32; an output in a narrow format is a float32 carrier. The _f64 functions know
   REFMOE_FLOAT64 alone.

   Weights of 8 bits and less. Where `right_format` is REFMOE_E5M2 .. REFMOE_INT4, each w of grouped_matmul and of
   grouped_matmul_backward_x points at a refmoe_scaled. What enters the sum is the exact real product
     w[e,m,k] = value(codes[e,m,k]) * scales[e, m / block_rows, k / block_cols] * tensor_scales[e]
   never rounded, however many bits it has; a chain's s = fma(a, w, s) rounds once. Codes are a byte each, of which
   E3M2 and E2M3 read the lower six bits, or (E2M1, INT4) half a byte, even k in the lower half, each row of the matrix
   beginning a new byte. A code or scale that is infinite or NaN makes such products. Codes and scales are streamed as
   they lie; nothing is expanded in memory beyond a run in cache.

   Profiles of the _f32 functions:
     REFMOE_EXACT   out is the exact real value, acc and bias included, rounded once to `format`, half to even,
                    with the subnormals of that format, overflow to infinity. Exact zero is +0; a value that
                    rounds to zero keeps its sign.
     REFMOE_CHAIN   s = acc or +0; s = fma(a, b, s) in float32, contracted index ascending, the first pair before
                    the second; then one float32 addition of bias; then, for a narrow format, one more rounding.
   The _f64 functions have one profile: s = s + a * b in binary64, two roundings a step, same order, bias last.
   Every NaN is stored as 0x7FC00000 (float32 carrier) or 0x7FF8000000000000 (float64).

   Promise. The bits depend on the operands, the profile and the format; not on the kernel, the number of threads, the
   processor, the caller's floating-point mode, or the rows and columns around an output. (bf16 dot instructions are
   used only where all factors of an output allow it, and after a sum of known answer.) Threads share out the output and
   never a sum. Each thread computes under round-to-nearest without flush-to-zero and puts back the mode it found.

   Ownership. The caller owns every array. `out` may be uninitialised; each of its elements is written exactly once and
   nothing else is written. `acc` may be `out` itself; no other array may overlap `out`. Arrays need the alignment of
   their elements and no more.

   Workspace. A call works in one block of scratch memory: for each thread at most 2.5 MiB and 296 bytes for each term
   of the longest sum (K; the Ms of the pairs together; the rows of the largest expert). With how->workspace NULL it
   takes the block and gives it back before it returns. With how->workspace->at NULL it checks its arguments, computes
   nothing and sets how->workspace->bytes to what the same call needs. Otherwise it works in the `bytes` at `at`, of any
   alignment and content, which no other call may use meanwhile; if they are too few, the status is
   REFMOE_BAD_WORKSPACE and `bytes` becomes what is needed. The report says what a call used. Its stack stays below
   64 KiB a thread.

   Errors. Everything is checked before the first write; a status other than REFMOE_OK means out is untouched. Functions
   print nothing, never exit, and keep no state.

   Threads. `threads` is the most that a call uses: no more than there is work for, one without OpenMP. Calls from
   several threads at once are safe if their outputs do not overlap. The threads are OpenMP's and outlive the call. A
   child made by fork() computes serially, because the thread pool of its parent does not exist in it.

   Building. `make lib`; the bits depend on the flags of flags.mk. Fast-math and big-endian processors are refused.  */

#ifndef REFMOE_KERNELS_H
#define REFMOE_KERNELS_H

#include <stdint.h>

/* What a manual declares stands between REFMOE_BEGIN and REFMOE_END: under C's names in C++ too, and visible while the
   shared library is made (REFMOE_EXPORT): these names leave it, and no others. */
#if defined(__cplusplus)
#define REFMOE_C_NAMES extern "C" {
#define REFMOE_C_NAMES_END }
#else
#define REFMOE_C_NAMES
#define REFMOE_C_NAMES_END
#endif
#if defined(REFMOE_EXPORT)
#define REFMOE_BEGIN REFMOE_C_NAMES _Pragma("GCC visibility push(default)")
#define REFMOE_END _Pragma("GCC visibility pop") REFMOE_C_NAMES_END
#else
#define REFMOE_BEGIN REFMOE_C_NAMES
#define REFMOE_END REFMOE_C_NAMES_END
#endif

REFMOE_BEGIN

/* cffi: begin */

enum refmoe_status {
    REFMOE_OK = 0,
    REFMOE_BAD_KERNEL,   /* no such row in the table of kernels, or this processor cannot run it */
    REFMOE_BAD_THREADS,  /* fewer than one thread */
    REFMOE_BAD_PROFILE,  /* not a profile of this function */
    REFMOE_BAD_FORMAT,   /* not a format of this function's operands, or not one of its output */
    REFMOE_BAD_FORCE,    /* not a tier that can be forced */
    REFMOE_BAD_SIZE,     /* a negative size, a number of pairs other than 1 or 2, or a product beyond 2^60 */
    REFMOE_BAD_OFFSETS,  /* offsets that do not rise from 0 to N */
    REFMOE_BAD_POINTER,  /* NULL for an array that has elements */
    REFMOE_NO_MEMORY,    /* scratch memory was refused */
    REFMOE_BAD_WORKSPACE, /* the caller's workspace is smaller than the call needs */
    REFMOE_BAD_SCALES,   /* blocks below 1 x 1, not a format of scales, or more bits than a product may have */
    REFMOE_MANY_ROWS     /* an expert with more rows than a function for few of them takes (refmoe_experts.h) */
};

enum refmoe_profile { REFMOE_EXACT = 0, REFMOE_CHAIN = 1, REFMOE_UNFUSED = 2 };
enum refmoe_format { REFMOE_FLOAT32 = 0, REFMOE_BF16 = 1, REFMOE_FP16 = 2, REFMOE_FLOAT64 = 3, REFMOE_E5M2 = 4,
                     REFMOE_E4M3 = 5, REFMOE_E3M2 = 6, REFMOE_E2M3 = 7, REFMOE_E2M1 = 8, REFMOE_INT8 = 9,
                     REFMOE_INT4 = 10, REFMOE_E8M0 = 11 };
enum refmoe_force { REFMOE_FORCE_NOTHING = 0, REFMOE_FORCE_COMPENSATED = 1, REFMOE_FORCE_EXACT = 2 };

/* Scratch memory that the caller owns. */
typedef struct {
    void *at;
    int64_t bytes;
} refmoe_workspace;

/* How to compute: which kernel (a row of the table below), with how many threads, under which profile, into which
   format. `force` (exact profile) sends every output at least to the compensated sum, or to the exact accumulator.
   What an initializer leaves out is zero: operands of float32, and scratch memory that the call takes itself. */
typedef struct {
    int32_t kernel;
    int32_t threads;
    int32_t profile;
    int32_t format;
    int32_t force;
    int32_t left_format;
    int32_t right_format;
    refmoe_workspace *workspace;
} refmoe_how;

/* Weights as codes and scales: codes (E, M, K), scales (E, ceil(M / block_rows), ceil(K / block_cols)) in the format
   scale_format (REFMOE_FLOAT32, _BF16, _FP16, _E4M3 or _E8M0), or NULL: none, and scale_format and blocks are not read.
   tensor_scales (E), float32, or NULL; beside them scales are of 16 bits or less. */
typedef struct {
    const void *codes;
    const void *scales;
    const float *tensor_scales;
    int64_t block_rows;
    int64_t block_cols;
    int32_t scale_format;
} refmoe_scaled;

/* How many outputs of an exact product each tier decided (the sum is the number of outputs), the bytes of scratch
   memory that the call used, of all threads, and how many outputs of a chain took two k a step (a bf16 dot
   instruction). */
typedef struct {
    int64_t rounding_test; /* both ends of the float64 interval round alike, or a non-finite value */
    int64_t grid;          /* every partial sum was representable in float64 */
    int64_t compensated;   /* value and error in two float64 */
    int64_t exact;         /* integer accumulator */
    int64_t workspace_bytes;
    int64_t paired;
} refmoe_report;

/* One pair of grouped_matmul_backward_x: d (N, m), w (E, m, K), or a refmoe_scaled. */
typedef struct {
    const void *d;
    const void *w;
    int64_t m;
} refmoe_pair_f32;

typedef struct {
    const double *d;
    const double *w;
    int64_t m;
} refmoe_pair_f64;

/* x (N, K), w (E, M, K) or a refmoe_scaled, bias (E, M) or NULL, acc (N, M) or NULL -> out (N, M). report may be
   NULL. */
int refmoe_grouped_matmul_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                              const int64_t *offsets, const void *x, const void *w, const float *bias,
                              const float *acc, float *out, refmoe_report *report);
int refmoe_grouped_matmul_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                              const int64_t *offsets, const double *x, const double *w, const double *bias,
                              const double *acc, double *out);

/* One or two pairs, acc (N, K) or NULL -> out (N, K). Two pairs are one sum: one rounding, or one chain. */
int refmoe_grouped_matmul_backward_x_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t k,
                                         const int64_t *offsets, int32_t num_pairs, const refmoe_pair_f32 *pairs,
                                         const float *acc, float *out, refmoe_report *report);
int refmoe_grouped_matmul_backward_x_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t k,
                                         const int64_t *offsets, int32_t num_pairs, const refmoe_pair_f64 *pairs,
                                         const double *acc, double *out);

/* d (N, M), x (N, K), acc (E, M, K) or NULL -> out (E, M, K); an expert without rows gets +0, or acc rounded. */
int refmoe_grouped_matmul_backward_w_f32(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                                         const int64_t *offsets, const void *d, const void *x, const float *acc,
                                         float *out, refmoe_report *report);
int refmoe_grouped_matmul_backward_w_f64(const refmoe_how *how, int64_t e, int64_t n, int64_t m, int64_t k,
                                         const int64_t *offsets, const double *d, const double *x,
                                         const double *acc, double *out);

/* The table of kernels, slowest first; the last row that runs here is the natural choice. tile_rows and
   tile_cols give the block of output that one tile makes under a profile: sizes next to them are worth testing. */
int refmoe_kernel_count(void);
const char *refmoe_kernel_name(int kernel);
const char *refmoe_kernel_needs(int kernel);
int refmoe_kernel_runs_here(int kernel);
int refmoe_tile_rows(int kernel, int profile);
int refmoe_tile_cols(int kernel, int profile);

/* The compiler's version, and the version of OpenMP (0: built without it; every call is then serial). */
const char *refmoe_compiler(void);
int refmoe_openmp(void);

/* cffi: end */

REFMOE_END

#endif
