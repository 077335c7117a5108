/* formulas_template.h: the formulas, written once. A stub defines the instruction set and includes this file:

     TARGET         attribute that turns the instructions on for one function
     LANES          float64 lanes of a vector
     FMA(a,b,c)     a * b + c on vectors of doubles, in one rounding or in two: the bounds below allow for both
     WIDEN(p)       LANES floats at p as doubles;  NARROW(v)  doubles to floats;  SIGNS(v)  sign bits of LANES floats
     LEAST(a,b), MOST(a,b)   the smaller, the larger; for a NaN anything;  ROOT(v)  square roots
     FORMULAS, KERNEL        the name of the table, of the kernel

   Bounds are in u = 2^-53, to first order; what is declared is about twice what is counted, which covers products of
   errors and the roundings made in computing the bounds.                                                            */

#include "formulas_vectors.h"

/* ---- a value and its bound, to a stored number ---- */

/* |exact - v| <= e */
struct bounded {
    vd v, e;
};

/* refmoe_round of rounding.c on a vector; infinities become NaN, which are left open. */
INLINE half round_narrow(vd x, const struct format *f)
{
    const vi exponent = (vi){0} + (INT64_C(0x7FF) << 52), sign = (vi){0} + INT64_MIN;
    vd power = (vd)((vi)x & exponent), least = spread(f->least_normal);
    vd shift = choose(power < least, least, power) * spread(f->shift);
    vd rounded = (vd)((vi)((x + shift) - shift) & ~sign);
    rounded = choose(rounded >= spread(f->overflow), (vd)exponent, rounded);
    return NARROW((vd)((vi)rounded | ((vi)x & sign)));
}

/* To bf16 where that is plain, else 0: rounded to float32 both ends are finite and beside every midpoint of bf16, so
   that rounding twice is rounding once, and half up by integers is half to even; and both round alike. A number with
   the number below it differs in a high bit only where its low half is 0: on a midpoint, once half a unit is added. */
INLINE int settle_plainly(vd low, vd high, float *out)
{
    const half_bits half_unit = (half_bits){0} + 0x8000;
    half_bits below = (half_bits)NARROW(low), a = below + half_unit, b = (half_bits)NARROW(high) + half_unit;
    half_bits unlike = ((a ^ b) | (a ^ (a - 1)) | (b ^ (b - 1))) >> 16;
    half_bits beyond = ((below & 0x7FFFFFFF) + 0x00800000) >> 31;
    if (__builtin_expect(SIGNS((half)(0 - (unlike | beyond))) != 0, 0))
        return 0;
    *(half_memory *)out = (half)(a & 0xFFFF0000);
    return 1;
}

/* Both ends of v -+ e, rounded; the sum with +0 makes an exact zero +0. `e` exceeds the error by u |v| for the rounding
   of the ends, unless it is 0. Returns a bit for each lane where they differ. */
INLINE uint32_t settle(struct bounded x, const int narrow, const struct format *f, float *out)
{
    vd v = x.v + spread(0.0), low = v - x.e, high = v + x.e;
    if (narrow && f == &refmoe_formats[REFMOE_BF16] && settle_plainly(low, high, out))
        return 0;
    half below = narrow ? round_narrow(low, f) : NARROW(low), above = narrow ? round_narrow(high, f) : NARROW(high);
    half_int open = ((half_int)below != (half_int)above) | (below != below);
    *(half_memory *)out = below;
    return (uint32_t)SIGNS((half)open);
}

/* ---- exp ---- */

/* exp(-x) for |x| <= 700: 3.6 u. x = k ln2 + r, |k| <= 1010: k high is exact in 42 + 10 bits, and so is the difference;
   k low brings 2^-85, the rounding of r u |r| = 0.35 u. The polynomial interpolates exp(-r) at the 12 Chebyshev points
   of |r| <= 0.3467, so it is off by 0.3467^12 / (12! 2^11) exp(0.3467) < 0.06 u; its coefficients round by 0.09 u;
   Horner's last steps round by (|r p_1| + p_0) u and |r| (|r p_2| + p_1) u, 3 u of the value with the rest. */
struct reduced {
    vd r;
    vi power; /* -k as it is added to the bits of a double */
};

INLINE struct reduced reduce(vd x)
{
    const vd whole = spread(0x1.8p52); /* a sum with it keeps the nearest integer in its low bits */
    vd shifted = FMA(x, spread(-0x1.71547652b82fep+0), whole), k = shifted - whole; /* -k */
    vd r = FMA(k, spread(0x1.ef35793c76730p-45), FMA(k, spread(0x1.62e42fefa3800p-1), x));
    return (struct reduced){r, (vi)shifted << 52};
}

/* (exp(-r) - 1) / r. */
INLINE vd exp_rest(vd r)
{
    static const double c[] = {-0x1.0000000000000p+0,  0x1.0000000000011p-1,   -0x1.555555555555ap-3,
                               0x1.555555554f083p-5,   -0x1.111111110f20ep-7,  0x1.6c16c1880b86fp-10,
                               -0x1.a01a01b14d19ep-13, 0x1.a0199182a8573p-16,  -0x1.71ddf55adb046p-19,
                               0x1.28b42c37558acp-22,  -0x1.af634ca3cb41fp-26};
    vd p = spread(c[10]);
    for (int i = 9; i >= 0; i--)
        p = FMA(p, r, spread(c[i]));
    return p;
}

INLINE vd exp_minus(vd x)
{
    struct reduced a = reduce(x);
    return (vd)((vi)FMA(exp_rest(a.r), a.r, spread(1.0)) + a.power);
}

/* ---- activations of the kind x / (1 + exp(-z)) ---- */

enum { SILU = REFMOE_SILU, GELU_TANH = REFMOE_GELU_TANH, RELU = REFMOE_RELU, RELU2 = REFMOE_RELU2,
       SIGMOID = REFMOE_SIGMOID, GELU = REFMOE_GELU, SQRT_SOFTPLUS = REFMOE_SQRT_SOFTPLUS, SOFTCAP = REFMOE_SOFTCAP };

/* act(x) = x s, act'(x) = s (1 + slope (1 - s)), s = 1 / (1 + t), t = exp(-z), slope = x dz/dx.
   z is held within +-400. Beyond, s is 1 to within 2^-577, which is in the bounds, or so small (2^-577, slope and all
   below 2^-560) that products with operands below 2^257 round to zero in every format, with the sign they should have;
   nothing leaves float64, because the least product of operands is 2^-298.  */
struct sigmoid {
    vd t, slope, size; /* size: |z|, for the bounds */
};

/* silu: z = alpha x: u. gelu_tanh: z = a x (1 + b x^2), slope = a x (1 + 3 b x^2): 5 u and 6 u. Its x is held within
   +-64, where |z| > 400. */
INLINE struct sigmoid sigmoid_of(const int function, const int general, vd x, double alpha)
{
    struct sigmoid s;
    vd z = x, slope = x;
    if (function == GELU_TANH) {
        vd near = LEAST(MOST(x, spread(-64.0)), spread(64.0)), square = near * near;
        near = near * spread(0x1.9884533d43651p+0);
        z = near * FMA(square, spread(0x1.6e4e26d4801f7p-5), spread(1.0));
        slope = near * FMA(square, spread(0x1.12ba9d1f60179p-3), spread(1.0));
    } else if (general)
        z = x * spread(alpha);
    z = LEAST(MOST(z, spread(-400.0)), spread(400.0));
    s.slope = function == GELU_TANH ? slope : z;
    s.size = size_of(z);
    s.t = exp_minus(z);
    return s;
}

/* What the relative error of t, and of the slope, is declared to be at most, beside 10 u for all else: |z| times the
   relative error of z. */
INLINE vd declared(const int function, const int general, struct sigmoid s, double rest)
{
    if (function == GELU_TANH)
        return FMA(s.size, spread(16 * 0x1p-53), spread(rest + 16 * 0x1p-53));
    return general ? FMA(s.size, spread(2 * 0x1p-53), spread(rest)) : spread(rest);
}

/* p / (1 + t), p a product off by at most 2 u: 3.6 u from t, u each for the sum and the quotient. */
INLINE struct bounded through(const int function, const int general, vd p, struct sigmoid s, vd one_plus_t)
{
    struct bounded y = {.v = p / one_plus_t};
    y.e = size_of(y.v) * declared(function, general, s, 16 * 0x1p-53);
    return y;
}

/* ---- the operands of an activation, as they enter it ---- */

struct operands {
    vd x, u, clipped, poison; /* clipped: u before the offset */
    vi x_inside, u_inside; /* of general ones: where the limit passes the gradient */
};

/* u + offset rounds by u; no sum other than 0 is below 2^-149. */
INLINE struct operands enter(const int general, vd gate, vd up, const refmoe_activation *act)
{
    struct operands o = {.x = gate, .u = up, .clipped = up};
    if (general) {
        vd limit = spread(act->limit);
        o.x = LEAST(gate, limit);
        o.u = LEAST(MOST(up, -limit), limit);
        o.x_inside = gate <= limit;
        o.u_inside = o.u == up;
        o.clipped = o.u;
        o.u = o.u + spread(act->offset);
    }
    o.poison = poison(gate) + poison(up);
    return o;
}

/* The product of floats is exact. */
INLINE struct bounded exactly(vd v, vd poison) { return (struct bounded){v, poison}; }

/* A product that rounds once. */
INLINE struct bounded rounded(vd v, vd poison) { return (struct bounded){v, FMA(size_of(v), spread(0x1p-51), poison)}; }

INLINE struct bounded forward(const int function, const int general, struct operands o, int is_gated, double alpha)
{
    vd positive = MOST(o.x, spread(0.0));
    if (function == RELU)
        return exactly(positive * o.u, o.poison);
    if (function == RELU2)
        return is_gated ? rounded(positive * positive * o.u, o.poison) : exactly(positive * positive, o.poison);
    struct sigmoid s = sigmoid_of(function, general, o.x, alpha);
    struct bounded y = through(function, general, function == SIGMOID ? o.u : o.x * o.u, s, spread(1.0) + s.t);
    if (general || function == SIGMOID)
        y.e += o.poison; /* otherwise the product is not finite either */
    return y;
}

/* d u (r (1 + t (1 + slope))) r, r = 1 / (1 + t): the sum is off by (3.6 + 3) u t (1 + |slope|) + u, each r by 5.6 u,
   the products by 5 u. */
INLINE struct bounded slope_through(const int function, const int general, vd p, struct sigmoid s, vd r)
{
    vd part = p * r, one = spread(1.0);
    struct bounded y = {.v = part * (FMA(s.t, one + s.slope, one) * r)};
    vd size = size_of(part) * (FMA(s.t, one + size_of(s.slope), one) * r);
    if (function == SIGMOID) { /* s (1 - s) */
        y.v = part * (s.t * r);
        size = size_of(y.v);
    }
    y.e = size * declared(function, general, s, 40 * 0x1p-53);
    return y;
}

INLINE void keep_inside(struct bounded *y, vi inside)
{
    y->v = (vd)((vi)y->v & inside);
    y->e = (vd)((vi)y->e & inside);
}

struct gradients {
    struct bounded gate, up;
};

INLINE struct gradients gradients_of_relu(const int function, vd d, struct operands o, int is_gated)
{
    struct gradients g;
    vi on = o.x > spread(0.0);
    vd du = (vd)((vi)(d * o.u) & on), positive = (vd)((vi)o.x & on), none = spread(0.0);
    if (function == RELU) {
        g.gate = exactly(du, none);
        g.up = exactly(d * positive, none);
    } else {
        vd twice = du * (positive + positive);
        g.gate = is_gated ? rounded(twice, none) : exactly(twice, none);
        g.up = rounded(d * positive * positive, none);
    }
    return g;
}

INLINE struct gradients gradients(const int function, const int general, vd d, struct operands o, int is_gated,
                                  double alpha)
{
    struct gradients g;
    if (function == RELU || function == RELU2)
        g = gradients_of_relu(function, d, o, is_gated);
    else {
        struct sigmoid s = sigmoid_of(function, general, o.x, alpha);
        vd r = spread(1.0) / (spread(1.0) + s.t), v = (function == SIGMOID ? d : d * o.x) * r;
        g.gate = slope_through(function, general, d * o.u, s, r);
        g.up = (struct bounded){v, size_of(v) * declared(function, general, s, 20 * 0x1p-53)};
    }
    if (general) {
        keep_inside(&g.gate, o.x_inside);
        keep_inside(&g.up, o.u_inside);
    }
    g.gate.e += o.poison;
    if (general || function == RELU || function == RELU2 || function == SIGMOID) {
        g.gate.e += poison(d);
        g.up.e += o.poison + poison(d);
    }
    return g;
}

#include "formulas_curves.h"

#include "formulas_rows.h"

#include "formulas_along.h"
