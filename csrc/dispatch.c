/* dispatch.c: refmoe_dispatch.h. */

#include <string.h>

#include "refmoe_dispatch.h"
#include "share_out.h"

#define ROWS_AT_ONCE 64

static int are_ids(int64_t slots, const int64_t *topk_indices, int64_t ids)
{
    int64_t bad = 0;
    for (int64_t i = 0; i < slots; i++)
        bad |= (topk_indices[i] < -1) | (topk_indices[i] >= ids);
    return !bad;
}

int refmoe_make_plan(int64_t tokens, int64_t top_k, int64_t experts, const int64_t *topk_indices, const uint8_t *kept,
                     const uint8_t *token_mask, int64_t *assigned, int64_t *kept_rows, int64_t *offsets,
                      int64_t *row_slot,
                     int64_t *slot_row)
{
    if (!is_size(tokens, top_k) || !is_size(experts, 1))
        return REFMOE_BAD_SIZE;
    const int64_t slots = tokens * top_k;
    if (!offsets || !assigned || !kept_rows || (slots > 0 && (!topk_indices || !row_slot || !slot_row)))
        return REFMOE_BAD_POINTER;
    if (!are_ids(slots, topk_indices, experts))
        return REFMOE_BAD_OFFSETS;
    memset(assigned, 0, (size_t)experts * sizeof *assigned);
    memset(kept_rows, 0, (size_t)experts * sizeof *kept_rows);
    for (int64_t s = 0; s < slots; s++) {
        const int64_t e = topk_indices[s];
        if (e < 0)
            continue;
        assigned[e] += !token_mask || token_mask[s / top_k];
        kept_rows[e] += !kept || kept[s];
    }
    /* offsets[e + 1] is where the next row of e goes: at the end, where those of e + 1 begin */
    offsets[0] = 0;
    for (int64_t e = 0, first = 0; e < experts; first += kept_rows[e++])
        offsets[e + 1] = first;
    for (int64_t s = 0; s < slots; s++) {
        const int64_t e = topk_indices[s];
        slot_row[s] = -1;
        if (e >= 0 && (!kept || kept[s])) {
            slot_row[s] = offsets[e + 1]++;
            row_slot[slot_row[s]] = s;
        }
    }
    return REFMOE_OK;
}

struct copies {
    int64_t cols, top_k;
    const float *x;
    const int64_t *row_slot;
    float *x_rows;
};

static void copy_rows(const void *call, int64_t begin, int64_t end, int thread)
{
    const struct copies *c = call;
    (void)thread;
    for (int64_t r = begin; r < end; r++)
        memcpy(c->x_rows + r * c->cols, c->x + c->row_slot[r] / c->top_k * c->cols, (size_t)c->cols * sizeof *c->x);
}

int refmoe_permute(const refmoe_how *how, int64_t rows, int64_t cols, int64_t tokens, int64_t top_k, const float *x,
                   const int64_t *row_slot, float *x_rows)
{
    const struct copies copies = {cols, top_k, x, row_slot, x_rows};
    if (how->threads < 1)
        return REFMOE_BAD_THREADS;
    if (!is_size(rows, cols) || !is_size(tokens, cols) || !is_size(tokens, top_k))
        return REFMOE_BAD_SIZE;
    if (rows > 0 && (!row_slot || (cols > 0 && (!x || !x_rows))))
        return REFMOE_BAD_POINTER;
    for (int64_t r = 0; r < rows; r++)
        if (row_slot[r] < 0 || row_slot[r] >= tokens * top_k)
            return REFMOE_BAD_OFFSETS;
    if (cols > 0)
        share_out(copy_rows, &copies, rows, ROWS_AT_ONCE, how->threads);
    return REFMOE_OK;
}

int refmoe_at_slots(int64_t tokens, int64_t top_k, int64_t ids, int64_t counted, const float *table,
                    const int64_t *topk_indices, const uint8_t *kept, uint8_t *used, float *out)
{
    if (!is_size(tokens, top_k) || !is_size(tokens, ids) || (tokens > 0 && top_k > 0 && ids == 0))
        return REFMOE_BAD_SIZE;
    if (tokens > 0 && top_k > 0 && (!table || !topk_indices || !used || !out))
        return REFMOE_BAD_POINTER;
    if (!are_ids(tokens * top_k, topk_indices, ids))
        return REFMOE_BAD_OFFSETS;
    for (int64_t t = 0; t < tokens; t++, table += ids) {
        const int64_t from = t * top_k, *id = topk_indices + from;
        int64_t first = top_k;
        for (int64_t k = top_k; k-- > 0;) {
            used[from + k] = id[k] >= 0 && id[k] < counted && (!kept || kept[from + k]);
            first = used[from + k] ? k : first;
        }
        const int64_t other = top_k == 0 ? 0 : id[first < top_k ? first : 0];
        for (int64_t k = 0; k < top_k; k++)
            out[from + k] = table[used[from + k] ? id[k] : other < 0 ? 0 : other];
    }
    return REFMOE_OK;
}

int64_t refmoe_first_nonfinite(int64_t n, const float *a)
{
    const uint32_t beyond = UINT32_C(0x7F800000);
    for (int64_t from = 0; from < n; from += 256) {
        const int64_t end = lower(from + 256, n);
        uint32_t found = 0, bits;
        for (int64_t i = from; i < end; i++) {
            memcpy(&bits, a + i, sizeof bits);
            found |= (bits & beyond) == beyond;
        }
        for (int64_t i = from; found && i < end; i++) {
            memcpy(&bits, a + i, sizeof bits);
            if ((bits & beyond) == beyond)
                return i;
        }
    }
    return n;
}
