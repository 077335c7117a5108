/* decide.c: blocks of sums in doubles, with what they err by, become results: the rounding test, then the tiers behind
   it. lanes.c, outputs.c and doubles.c end their exact products here. */

#include "product.h"

/* Bias joins last, as one more term. */
static void add_bias(const struct sums_block *b, const float *bias)
{
    for (int i = 0; i < b->rows; i++)
        for (int j = 0, at = i * b->pitch; j < b->cols; j++, at++) {
            double term = bias[b->col + (b->turned ? i : j)];
            b->error[at] += HALF_UNIT * (magnitude(b->value[at]) + magnitude(term));
            b->value[at] += term;
        }
}

static float resolve(const struct product *p, const struct unit *u, struct scratch *s, const struct sums_block *b,
                     int i, int j)
{
    int across = b->turned ? i : j, down = b->turned ? j : i;
    return refmoe_resolve_output(p, u, s, b->row + down, b->col + across, b->value[i * b->pitch + j], b->slot + across);
}

void refmoe_decide(const struct product *p, const struct unit *u, struct scratch *s, const struct sums_block *b,
                   float *result)
{
    static const double none[MAX_TILE_ROWS + MAX_TILE_COLS];
    uint32_t open[MAX_TILE_ROWS], real = (uint32_t)((UINT64_C(1) << b->cols) - 1);
    int unforced = p->force == REFMOE_FORCE_NOTHING;
    if (u->bias)
        add_bias(b, (const float *)u->bias);
    p->kernel->test(b->rows, b->value, none, none, b->error, p->format, result, open);
    for (int i = 0; i < b->rows; i++) {
        open[i] = unforced ? open[i] & real : real;
        s->report.rounding_test += b->cols - __builtin_popcount(open[i]);
        for (; open[i]; open[i] &= open[i] - 1) {
            int j = __builtin_ctz(open[i]);
            result[i * b->pitch + j] = resolve(p, u, s, b, i, j);
        }
    }
}
