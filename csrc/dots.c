/* dots.c: refmoe_row_products, on the tiles of the chain profile: of a tile's outputs only the diagonal is wanted, and
   that is still faster than one row at a time, whose every addition waits for the one before. */

#include "refmoe_sums.h"
#include "share_out.h"
#include "turn.h"

enum { RUN = 128, ROWS_AT_ONCE = 96 };

struct dots {
    const struct kernel *kernel;
    int64_t m;
    const float *a, *b;
    float *out;
};

/* Numbers k .. k + count of `rows` rows, as a tile reads them. */
struct block {
    _Alignas(64) float left[RUN * MAX_TILE_ROWS], right[RUN * MAX_TILE_COLS], sum[MAX_TILE_ROWS * MAX_TILE_COLS];
};

static void dot_tile(const struct dots *d, struct block *t, int64_t first, int rows)
{
    const struct tile *tile = &d->kernel->tile[REFMOE_CHAIN];
    const float *a = d->a + first * d->m, *b = d->b + first * d->m;
    memset(t->sum, 0, sizeof t->sum);
    for (int64_t k = 0; k < d->m; k += RUN) {
        int64_t count = lower(RUN, d->m - k);
        turn_block(a + k, d->m, count, rows, tile->rows, t->left);
        turn_block(b + k, d->m, count, rows, tile->cols, t->right);
        tile->multiply(rows, count, t->left, t->right, tile->cols, t->sum);
    }
    d->kernel->settle(rows, tile->cols, t->sum, NULL, NULL, REFMOE_FLOAT32, t->sum);
    for (int i = 0; i < rows; i++)
        d->out[first + i] = t->sum[i * tile->cols + i];
}

static void dot_rows(const void *call, int64_t begin, int64_t end, int thread)
{
    const struct dots *d = call;
    const int tall = (int)lower(d->kernel->tile[REFMOE_CHAIN].rows, d->kernel->tile[REFMOE_CHAIN].cols);
    struct block block;
    (void)thread;
    memset(block.right, 0, sizeof block.right); /* columns beyond the rows are computed, and not read */
    for (int64_t i = begin; i < end; i += tall)
        dot_tile(d, &block, i, (int)lower(tall, end - i));
}

int refmoe_row_products(const refmoe_how *how, int64_t n, int64_t m, const float *a, const float *b, float *out)
{
    int64_t size, limit = INT64_C(1) << 60;
    struct dots dots = {refmoe_kernel(how->kernel), m, a, b, out};
    if (!dots.kernel)
        return REFMOE_BAD_KERNEL;
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    if (n < 0 || m < 0 || n > limit || __builtin_mul_overflow(n, m, &size) || size > limit)
        return REFMOE_BAD_SIZE;
    if ((size > 0 && (!a || !b)) || (n > 0 && !out))
        return REFMOE_BAD_POINTER;
    share_out(dot_rows, &dots, n, ROWS_AT_ONCE, how->threads);
    return REFMOE_OK;
}
