"""What stands between an expert's two linear maps, each with its backward.   Spec 3.2, 5.5

A gated expert multiplies an activation of its gate by its up projection; a plain one has only the up projection. Either
is one function of its arguments, rounded once, and so is each gradient.
"""

# name -> (value, derivative), as formulas over an arithmetic. relu'(0) = relu2'(0) = 0.
ACTIVATIONS = {
    "silu": (lambda m, g, alpha: m.silu(g, alpha), lambda m, g, alpha: m.silu_derivative(g, alpha)),
    "gelu": (lambda m, g, alpha: m.gelu(g), lambda m, g, alpha: m.gelu_derivative(g)),
    "gelu_tanh": (lambda m, g, alpha: m.gelu_tanh(g), lambda m, g, alpha: m.gelu_tanh_derivative(g)),
    "relu": (lambda m, g, alpha: m.relu(g), lambda m, g, alpha: m.step(g)),
    "relu2": (lambda m, g, alpha: m.relu(g) * m.relu(g), lambda m, g, alpha: 2 * m.relu(g)),
}


def gated(gate, up, experts, num):
    """hidden = act(min(gate, L)) (clip(up, -L, L) + offset); no limit L: no clamp.   Spec 3.2

    gate (N, F), up (N, F) -> hidden (N, F)
    """
    act, _ = ACTIVATIONS[experts.activation]

    def formula(m, gate, up):
        g, u = _clamped(m, gate, up, experts)
        return act(m, g, experts.alpha) * u

    return num.evaluate("hidden_rows", formula, gate, up)


def gated_backward(d_hidden, gate, up, experts, num):
    """d_gate = d_hidden u act'(g) [gate <= L];  d_up = d_hidden act(g) [-L <= up <= L].   Spec 5.5

    d_hidden (N, F), gate (N, F), up (N, F) -> d_gate (N, F), d_up (N, F). The clamp passes the gradient at its limits.
    """
    act, slope = ACTIVATIONS[experts.activation]

    def d_gate(m, d_hidden, gate, up):
        # hidden = act(g) * u,   g = min(gate, L)
        g, u = _clamped(m, gate, up, experts)
        return _where_inside(m, m.real(gate), None, experts.limit, d_hidden * u * slope(m, g, experts.alpha))

    def d_up(m, d_hidden, gate, up):
        # hidden = act(g) * u,   u = clip(up, -L, L) + offset
        g, _ = _clamped(m, gate, up, experts)
        return _where_inside(m, m.real(up), experts.limit, experts.limit, d_hidden * act(m, g, experts.alpha))

    saved = d_hidden, gate, up
    return num.evaluate("d_gate_rows", d_gate, *saved), num.evaluate("d_up_rows", d_up, *saved)


def plain(up, experts, num):
    """hidden = act(up).   Spec 3.2

    up (N, F) -> hidden (N, F)
    """
    act, _ = ACTIVATIONS[experts.activation]
    return num.evaluate("hidden_rows", lambda m, u: act(m, u, experts.alpha), up)


def plain_backward(d_hidden, up, experts, num):
    """d_up = d_hidden act'(up).   Spec 5.5

    d_hidden (N, F), up (N, F) -> d_up (N, F)
    """
    _, slope = ACTIVATIONS[experts.activation]
    return num.evaluate("d_up_rows", lambda m, d, u: d * slope(m, u, experts.alpha), d_hidden, up)


def _clamped(m, gate, up, experts):
    """g = min(gate, L), u = clip(up, -L, L) + offset, each left alone where it is neutral."""
    g, u = gate, up
    if experts.limit is not None:
        g, u = m.minimum(gate, experts.limit), m.clip(up, -experts.limit, experts.limit)
    return g, u + experts.linear_offset if experts.linear_offset else u


def _where_inside(m, real, below, above, value):
    if above is None:
        return value
    outside = real > above if below is None else (real > above) | (real < -below)
    inside = m.where(outside, 0, 1)
    return value * m.where(real != real, float("nan"), inside)  # NaN stays NaN, and 0 times infinity is NaN
