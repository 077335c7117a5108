/* formulas_curves.h: activations that are not x / (1 + exp(-z)) alone: gelu, sqrt_softplus, soft caps. Included by
   formulas_template.h, whose rules for bounds hold: u = 2^-53, to first order, and about twice what is counted is
   declared.

   Their arguments are held where the value, or what it lacks to its limit, is below 2^-500: products with operands
   below 2^257 round to zero in every format there, with the sign they should have. */

/* act(x) and act'(x). */
struct curve {
    struct bounded value, slope;
};

/* Either factor may be off. A product that is exactly zero has no bound; one that leaves float64, where both factors
   are held, has a bound that leaves its sign open. */
INLINE struct bounded product(struct bounded a, struct bounded b)
{
    const vd zero = spread(0.0), least = spread(0x1p-1000);
    vd v = a.v * b.v, from_b = size_of(a.v) * b.e;
    vi is_lost = (size_of(v) < least) & (a.v != zero) & (b.v != zero);
    vd e = FMA(size_of(b.v) + b.e, a.e, FMA(size_of(v), spread(0x1p-52), from_b));
    return (struct bounded){v, e + choose(is_lost, least, zero)};
}

INLINE struct bounded within(vd v, vd size, vd relative) { return (struct bounded){v, size * relative}; }

INLINE vd signed_as(vd size, vd x) { return (vd)((vi)size | ((vi)x & ((vi){0} + INT64_MIN))); }

/* ---- gelu: x Phi(x) ---- */

/* exp(a^2 / 2) (1 - Phi(a)) for 0 <= a <= 28: 14 u. It is P(t) / (a + 5), t = (a - 5) / (a + 5), with P interpolated at
   22 Chebyshev points of -1 <= t <= 23/33: off by 0.04 u; the coefficients round by 0.3 u, Horner's steps by 4 u; t is
   off by 4 u of itself, which |t P'| < 1.5 P makes 6 u; the other factor and the product bring 3 u. */
INLINE vd scaled_tail(vd a)
{
    static const double c[] = {
        0x1.89d3abe1f95aep-1,   -0x1.54ad03f27ca18p-1,  0x1.fb31653876f8ep-2,   -0x1.410ed5f87599dp-2,
        0x1.51f6329f01a14p-3,   -0x1.1b1c254ca0e57p-4,  0x1.54b4d4f4970f7p-6,   -0x1.88590e9f3cd08p-9,
        -0x1.a2503786b871fp-11, 0x1.1daf1bf1eff3cp-11,  -0x1.f2148be6859f3p-15, -0x1.a1707ad27605dp-15,
        0x1.17deb3c43b008p-16,  0x1.0b2142ce46534p-18,  -0x1.73d1cacb8fc82p-19, -0x1.6927785d332dfp-22,
        0x1.d2f4f7aed2da8p-22,  0x1.6ef1e20efca5cp-25,  -0x1.21ef54d5f8201p-24, -0x1.63a4bfbaeadfdp-27,
        0x1.16333a48e1446p-27,  0x1.43ea7391da235p-29};
    vd r = spread(1.0) / (a + spread(5.0)), t = (a - spread(5.0)) * r, p = spread(c[21]);
    for (int i = 20; i >= 0; i--)
        p = FMA(p, t, spread(c[i]));
    return p * r;
}

/* With a = |x|, e = exp(-a^2/2), R the tail above, k = 1/sqrt(2 pi): Phi(x) is e R below 0 and 1 - e R above, the slope
   Phi + x k e is e (R - k a) below and 1 - e (R - k a) above. e is off by 3.6 u, and by u a^2/2 where x is no float: 18
   u for the products beside that, of the sum of the sizes where terms cancel. */
INLINE struct curve gelu_curve(vd x)
{
    const vd one = spread(1.0), a = LEAST(size_of(x), spread(28.0)), square = a * a;
    const vi above = x > spread(0.0);
    vd e = exp_minus(square * spread(0.5)), tail = scaled_tail(a), density = a * spread(0x1.9884533d43651p-2);
    vd phi = e * tail, rest = e * (tail - density), size = e * (tail + density);
    vd value = x * choose(above, one - phi, phi), relative = FMA(square, spread(0x1p-53), spread(64 * 0x1p-53));
    return (struct curve){within(value, size_of(value), relative),
                          within(choose(above, one - rest, rest), choose(above, one + size, size), relative)};
}

/* ---- sqrt_softplus ---- */

/* sqrt(max(x, 0) + log(1 + t)), t = exp(-|x|): log(1 + t) = 2 atanh(f), f = t / (2 + t) off by 5.6 u; atanh(f) / f is
   interpolated in f^2 at 11 Chebyshev points of 0 .. 1/9, off by 0.02 u, and rounds by 1.1 u: 8.2 u for the logarithm,
   5.6 u for the root, 13 u for the slope sigmoid(x) / (2 root). */
INLINE struct curve sqrt_softplus_curve(vd x)
{
    static const double c[] = {0x1.0000000000000p+0, 0x1.5555555555527p-2, 0x1.99999999a1c4fp-3, 0x1.249249201beacp-3,
                               0x1.c71c7445b2127p-4, 0x1.745caf74cbe5ep-4, 0x1.3b1e2bc8a12dep-4, 0x1.106443d797a85p-4,
                               0x1.f00852a5c69fap-5, 0x1.54f8c703ce149p-5, 0x1.5d1081172f887p-4};
    const vd one = spread(1.0), relative = spread(32 * 0x1p-53);
    vd t = exp_minus(LEAST(size_of(x), spread(700.0))), f = t / (t + spread(2.0)), square = f * f, p = spread(c[10]);
    for (int i = 9; i >= 0; i--)
        p = FMA(p, square, spread(c[i]));
    vd root = ROOT(MOST(x, spread(0.0)) + (f + f) * p);
    vd slope = choose(x < spread(0.0), t, one) / ((one + t) * (root + root));
    return (struct curve){within(root, root, relative), within(slope, slope, relative)};
}

/* ---- soft caps: cap tanh(scale x / cap) ---- */

/* The value, act' / scale, and what their relative errors are declared to be at most. */
struct capped {
    vd value, slope, relative;
};

/* tanh(y/2) = m / (1 + t), its derivative by y/2 is 4 t / (1 + t)^2, t = exp(-y), m = 1 - t = (1 - 2^k) - 2^k (exp(-r)
   - 1). exp(-r) - 1 is off by 2.2 u of itself, so m is by 5 u, t by 3.6 u; y by 2 u, which is 2 u of tanh and 2 u y of
   the slope. */
INLINE struct capped cap_of(vd x, double scale, double cap)
{
    const vd one = spread(1.0);
    vd y = LEAST(size_of(x) * spread(2 * magnitude(scale) / cap), spread(400.0));
    struct reduced a = reduce(y);
    vd rest = a.r * exp_rest(a.r), power = (vd)((vi)one + a.power);
    vd t = FMA(power, rest, power), m = (one - power) - power * rest, per = one / (one + t);
    return (struct capped){signed_as(m * per, x) * spread(scale < 0 ? -cap : cap), spread(4.0) * t * per * per,
                           FMA(y, spread(4 * 0x1p-53), spread(32 * 0x1p-53))};
}

INLINE struct curve softcap_curve(vd x, const refmoe_activation *act)
{
    struct capped c = cap_of(x, act->alpha, act->cap);
    vd slope = c.slope * spread(act->alpha);
    return (struct curve){within(c.value, size_of(c.value), c.relative), within(slope, size_of(slope), c.relative)};
}

/* c s, s = sigmoid(alpha x), c = x or its soft cap; the slope is s (c' + alpha c (1 - s)), where alpha x is held. Where
   the terms cancel, alpha x < 0, the second is above 2^-122, or c' is not held. */
INLINE struct curve capped_silu_curve(vd x, const refmoe_activation *act)
{
    struct sigmoid s = sigmoid_of(SILU, 1, x, act->alpha);
    struct capped c = {x, spread(1.0), spread(0.0)};
    vd along = s.slope;
    if (act->cap > 0) {
        c = cap_of(x, 1, act->cap);
        along = c.value * spread(act->alpha);
    }
    vd r = spread(1.0) / (spread(1.0) + s.t), value = c.value * r, other = along * (s.t * r);
    vd relative = c.relative + declared(SILU, 1, s, 64 * 0x1p-53);
    return (struct curve){within(value, size_of(value), relative),
                          within((c.slope + other) * r, (c.slope + size_of(other)) * r, relative)};
}

/* ---- the second factor, and products ---- */

INLINE struct curve curve_of(const int function, vd x, const refmoe_activation *act)
{
    if (function == GELU)
        return gelu_curve(x);
    if (function == SQRT_SOFTPLUS)
        return sqrt_softplus_curve(x);
    return function == SOFTCAP ? softcap_curve(x, act) : capped_silu_curve(x, act);
}

/* u as a factor, with its slope: clipped, perhaps soft-capped, plus the offset. */
INLINE struct curve second_factor(const int function, struct operands o, int is_gated, const refmoe_activation *act)
{
    struct curve u = {{o.u, size_of(o.u) * spread(0x1p-52)}, exactly(spread(1.0), spread(0.0))};
    if (function == CAPPED_SILU && is_gated && act->up_cap > 0) {
        struct capped c = cap_of(o.clipped, 1, act->up_cap);
        u.value.v = c.value + spread(act->offset);
        u.value.e = FMA(size_of(c.value), c.relative, size_of(u.value.v) * spread(0x1p-52));
        u.slope = within(c.slope, c.slope, c.relative);
    }
    return u;
}

INLINE struct bounded curved_forward(const int function, struct operands o, int is_gated, const refmoe_activation *act)
{
    struct curve u = second_factor(function, o, is_gated, act);
    struct bounded y = product(curve_of(function, o.x, act).value, u.value);
    y.e += o.poison;
    return y;
}

INLINE struct gradients curved_gradients(const int function, vd d, struct operands o, int is_gated,
                                         const refmoe_activation *act)
{
    struct curve u = second_factor(function, o, is_gated, act), curve = curve_of(function, o.x, act);
    struct bounded exact_d = exactly(d, spread(0.0));
    struct gradients g = {product(product(exact_d, u.value), curve.slope),
                          product(product(exact_d, curve.value), u.slope)};
    keep_inside(&g.gate, o.x_inside);
    keep_inside(&g.up, o.u_inside);
    g.gate.e += o.poison + poison(d);
    g.up.e += o.poison + poison(d);
    return g;
}
