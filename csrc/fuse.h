/* fuse.h: a step of a chain whose weights only doubles hold: products of codes and scales (codes.h). s = fma(x, w, s),
   rounded once to float32: a double rounded to odd, rounded again. Its includer defines INLINE, FMA64 and the vectors
   vd of doubles, vi of as many integers, half of as many floats; DOUBLES(v), a half as doubles, where the compiler
   would do it in parts; and FUSE where roundings may be chosen for each instruction. Elsewhere a double rounded to
   nearest will do unless it lies on a midpoint of two float32, or below the normal ones. */

#if !defined(FUSE)
INLINE vd fuse(vd w, vd x, vd c)
{
    const int lanes = sizeof(vd) / sizeof(double);
    vd sum = FMA64(w, x, c);
    vi size = (vi)sum & INT64_MAX;
    vi risky = ((size & 0x1FFFFFFF) == 0x10000000) | ((size < ((vi){0} + (INT64_C(897) << 52))) & (size != 0));
    int64_t any = 0;
    for (int lane = 0; lane < lanes; lane++)
        any |= risky[lane];
    for (int lane = 0; any && lane < lanes; lane++)
        sum[lane] = (double)refmoe_fused_wide((float)x[lane], w[lane], (float)c[lane]);
    return sum;
}
#define FUSE(w, x, c) fuse(w, x, c)
#endif

#if !defined(DOUBLES)
#define DOUBLES(v) __builtin_convertvector((v), vd)
#endif

INLINE half narrowed(vd x) { return __builtin_convertvector(x, half); }

INLINE vd fused_wide(vd w, vd x, vd c) { return DOUBLES(narrowed(FUSE(w, x, c))); }
