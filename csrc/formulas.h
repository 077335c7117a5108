/* formulas.h: what formulas.c and the files of the instruction sets share. */

#ifndef REFMOE_FORMULAS_INSIDE_H
#define REFMOE_FORMULAS_INSIDE_H

#include "refmoe_formulas.h"
#include "tile.h"

enum { MAX_OPERANDS = 3, MAX_RESULTS = 2 };

/* Activations beyond those of the manual: silu with soft caps. */
enum { CAPPED_SILU = REFMOE_SOFTCAP + 1, ACTIVATIONS };

/* One call: operands and results by position as in the manual, an operand that is absent NULL. */
struct formula_call {
    refmoe_activation act;
    const struct format *format;
    int narrow;     /* not float32 */
    int64_t length; /* of a row, for formulas with rows */
    double factor;
    const uint8_t *used;
    const float *in[MAX_OPERANDS];
    float *out[MAX_RESULTS];
    refmoe_open *open[MAX_RESULTS];
};

/* Elements (or rows) begin .. end of the call's results. */
typedef void formula_function(const struct formula_call *call, int64_t begin, int64_t end);

/* One instruction set. */
struct formulas {
    const char *kernel;
    formula_function *gated[ACTIVATIONS][2]; /* [activation][1: with alpha, limit, offset] */
    formula_function *gated_backward[ACTIVATIONS][2];
    formula_function *scaled_rows, *softmax, *softmax_backward, *log_sum_exp;
};

extern const struct formulas refmoe_formulas_portable;
#if defined(__x86_64__)
extern const struct formulas refmoe_formulas_avx2, refmoe_formulas_avx512;
#endif
#if defined(__aarch64__)
extern const struct formulas refmoe_formulas_neon;
#endif

/* The formulas of a kernel; NULL if there is no such kernel or it cannot run here. */
const struct formulas *refmoe_formulas(int kernel);

/* Row n of softmax with more digits; false where they do not decide it either. Its numbers are finite, some are
   used. */
int refmoe_softmax_again(const struct formula_call *call, int64_t n);

/* The functions of refmoe_gated and refmoe_scaled_rows under `how`, the activation put into the call; NULL where there
   is no such kernel or the activation is not proven. */
formula_function *refmoe_gated_function(const refmoe_how *how, const refmoe_activation *act, struct formula_call *call);
formula_function *refmoe_scaled_function(const refmoe_how *how, struct formula_call *call);

/* Called by several threads at once. */
static inline void note_open(refmoe_open *open, int64_t index)
{
    int64_t at = __atomic_fetch_add(&open->count, 1, __ATOMIC_RELAXED);
    if (at < open->room)
        open->index[at] = index;
}

#endif
