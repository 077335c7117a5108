/* tile_whole.h: the second half of tile_template.h: tiles that start at +0 and end in stored float32.

   A gradient of weights sums over the rows of one expert, often few: most of such a tile's time would go into carrying
   its sums through memory between start, product, rounding and store. Here they never leave the registers. */

/* The end of a chain: settle_lanes, on whole vectors where it is made of integers. */
INLINE vf ended_lanes(vf x, int format)
{
    typedef int32_t bits __attribute__((vector_size(8 * LANES)));
    typedef uint32_t unsigned_bits __attribute__((vector_size(8 * LANES)));
    bits none = x != x;
    unsigned_bits rounded = (unsigned_bits)x;
    if (format == REFMOE_FP16) {
        vf out;
        for (int part = 0; part < 2; part++)
            *((half_memory *)&out + part) = settle_lanes(*((const half_memory *)&x + part), REFMOE_FP16,
                                                         &refmoe_formats[REFMOE_FP16]);
        return out;
    }
    if (format == REFMOE_BF16)
        rounded = (rounded + 0x7FFF + (rounded >> 16 & 1)) & 0xFFFF0000u;
    return (vf)((none & 0x7FC00000) | (~none & (bits)rounded));
}

/* Whether a sum is NaN, which is rare: looking at two in one instruction costs less than ending each. */
INLINE int has_nan(const int rows, vf sum[ROWS][2])
{
#if defined(UNORDERED)
    int any = 0;
    EACH_INDEX for (int i = 0; i < rows; i++)
        any |= (int)UNORDERED(sum[i][0], sum[i][1]);
    return any;
#else
    return (void)rows, (void)sum, 1;
#endif
}

INLINE void put_lanes(float *out, vf x, int past)
{
#if defined(PASS)
    if (past && (uintptr_t)out % sizeof x == 0) {
        PASS(out, x);
        return;
    }
#endif
    (void)past;
    *(vf_memory *)out = x;
}

/* Sums that are their own ends; the compiler keeps them in registers as long as it sees every index. */
INLINE void put_rows(const int rows, const struct whole *w, float *out, vf sum[ROWS][2])
{
#if defined(PASS)
    if (w->past && ((uintptr_t)out | (uintptr_t)(w->out_row * (int64_t)sizeof(float))) % sizeof(vf) == 0) {
        EACH_INDEX for (int i = 0; i < rows; i++)
        {
            PASS(out + i * w->out_row, sum[i][0]);
            PASS(out + i * w->out_row + 2 * LANES, sum[i][1]);
        }
        return;
    }
#endif
    EACH_INDEX for (int i = 0; i < rows; i++)
    {
        put_lanes(out + i * w->out_row, sum[i][0], w->past);
        put_lanes(out + i * w->out_row + 2 * LANES, sum[i][1], w->past);
    }
}

INLINE void end_rows(const int rows, const struct whole *w, float *out, vf sum[ROWS][2])
{
    vf room[ROWS][2];
    EACH_INDEX for (int i = 0; i < rows; i++)
        room[i][0] = sum[i][0], room[i][1] = sum[i][1];
    for (int i = 0; i < rows; i++)
        for (int v = 0; v < 2; v++)
            put_lanes(out + i * w->out_row + 2 * LANES * v, ended_lanes(room[i][v], w->format), w->past);
}

INLINE void whole_rows_chain(const int rows, const struct whole *w, const float *b, float *out)
{
    const float *a = w->a;
    vf sum[ROWS][2];
    EACH_INDEX for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = (vf){0};
    for (int64_t k = 0; k < w->length; k++, a += ROWS, b += w->ldb) {
        vf left = LOAD_F(b), right = LOAD_F(b + 2 * LANES);
        EACH_INDEX for (int i = 0; i < rows; i++)
        {
            vf x = SPREAD32(a[i]);
            sum[i][0] = FMA32(x, left, sum[i][0]);
            sum[i][1] = FMA32(x, right, sum[i][1]);
        }
    }
    if (w->format == REFMOE_FLOAT32 && !has_nan(rows, sum))
        put_rows(rows, w, out, sum);
    else
        end_rows(rows, w, out, sum);
}

INLINE void whole_panels_chain(const int rows, const struct whole *w)
{
    for (int c = 0; c < w->panels; c++)
        whole_rows_chain(rows, w, (const float *)((const char *)w->b + c * w->apart), w->out + c * 4 * LANES);
}

/* Lanes that differ in any bit, and those of which the second is NaN. */
INLINE uint32_t differ(vf below, vf above)
{
#if defined(DIFFER)
    return (uint32_t)DIFFER(below, above);
#else
    typedef int32_t bits __attribute__((vector_size(8 * LANES)));
    bits open = ((bits)below != (bits)above) | (above != above);
    const half_memory *part = (const half_memory *)&open;
    return (uint32_t)SIGNS(part[0]) | (uint32_t)SIGNS(part[1]) << LANES;
#endif
}

INLINE vf join(half low, half high)
{
#if defined(JOIN)
    return JOIN(low, high);
#else
    vf joined;
    half_memory *part = (half_memory *)&joined;
    part[0] = low, part[1] = high;
    return joined;
#endif
}

/* One row of sums, rounded at both ends of what it errs by, and stored: the lanes that are open. */
INLINE uint32_t end_exact_row(const struct whole *w, int i, vd left, vd right, vd norm[2], const int format)
{
    const struct format *f = &refmoe_formats[format];
    const int narrow = format != REFMOE_FLOAT32;
    const vd bound = SPREAD64(w->row_bound[i]);
    vf below = join(round_lanes(FMA64(-bound, norm[0], left), narrow, f),
                    round_lanes(FMA64(-bound, norm[1], right), narrow, f));
    vf above = join(round_lanes(FMA64(bound, norm[0], left), narrow, f),
                    round_lanes(FMA64(bound, norm[1], right), narrow, f));
    put_lanes(w->out + i * w->out_row, below, w->past);
    return differ(below, above);
}

INLINE void whole_rows_exact(const int rows, const struct whole *w, uint32_t *undecided, const int format)
{
    const double *a = w->a;
    const float *b = w->b;
    vd sum[ROWS][2], norm[2] = {LOAD_D(w->col_norm), LOAD_D(w->col_norm + LANES)};
    uint32_t any = 0;
    EACH_INDEX for (int i = 0; i < rows; i++)
        sum[i][0] = sum[i][1] = (vd){0};
    for (int64_t k = 0; k < w->length; k++, a += ROWS, b += w->ldb) {
        vd left = WIDEN(b), right = WIDEN(b + LANES);
        EACH_INDEX for (int i = 0; i < rows; i++)
        {
            vd x = SPREAD64(a[i]);
            sum[i][0] = FMA64(x, left, sum[i][0]);
            sum[i][1] = FMA64(x, right, sum[i][1]);
        }
    }
    EACH_INDEX for (int i = 0; i < rows; i++)
        any |= undecided[i] = end_exact_row(w, i, sum[i][0], sum[i][1], norm, format);
    if (any)
        EACH_INDEX for (int i = 0; i < rows; i++)
        {
            *(vd_memory *)(w->value + 2 * LANES * i) = sum[i][0];
            *(vd_memory *)(w->value + 2 * LANES * i + LANES) = sum[i][1];
        }
}

#define WHOLE_CASE(count, ...)                                                                                        \
    case count: {                                                                                                     \
        const int r = count <= ROWS ? count : ROWS;                                                                   \
        __VA_ARGS__;                                                                                                  \
        return;                                                                                                       \
    }
#define WHOLE_ROWS(...)                                                                                               \
    switch (rows) {                                                                                                   \
        WHOLE_CASE(1, __VA_ARGS__) WHOLE_CASE(2, __VA_ARGS__) WHOLE_CASE(3, __VA_ARGS__) WHOLE_CASE(4, __VA_ARGS__)   \
        WHOLE_CASE(5, __VA_ARGS__) WHOLE_CASE(6, __VA_ARGS__) WHOLE_CASE(7, __VA_ARGS__) WHOLE_CASE(8, __VA_ARGS__)   \
        WHOLE_CASE(9, __VA_ARGS__) WHOLE_CASE(10, __VA_ARGS__) WHOLE_CASE(11, __VA_ARGS__) WHOLE_CASE(12, __VA_ARGS__) \
    }

static TARGET void whole_chain(int rows, const struct whole *w, uint32_t *undecided)
{
    (void)undecided;
    WHOLE_ROWS(whole_panels_chain(r, w))
}

static TARGET void whole_exact(int rows, const struct whole *w, uint32_t *undecided)
{
    if (w->format == REFMOE_FLOAT32)
        WHOLE_ROWS(whole_rows_exact(r, w, undecided, REFMOE_FLOAT32))
    else if (w->format == REFMOE_BF16)
        WHOLE_ROWS(whole_rows_exact(r, w, undecided, REFMOE_BF16))
    else
        WHOLE_ROWS(whole_rows_exact(r, w, undecided, REFMOE_FP16))
}
