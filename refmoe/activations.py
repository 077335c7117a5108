"""What stands between an expert's two linear maps, each with its backward.   Spec 3.2, 5.5

A gated expert multiplies an activation of its gate by its up projection; a plain one has only the up projection. Either
is one function of its arguments, rounded once, and so is each gradient.
"""

from .numerics import Named

# name -> (value, derivative), as formulas over an arithmetic. relu'(0) = relu2'(0) = 0.
ACTIVATIONS = {
    "silu": (lambda m, g, alpha: m.silu(g, alpha), lambda m, g, alpha: m.silu_derivative(g, alpha)),
    "gelu": (lambda m, g, alpha: m.gelu(g), lambda m, g, alpha: m.gelu_derivative(g)),
    "gelu_tanh": (lambda m, g, alpha: m.gelu_tanh(g), lambda m, g, alpha: m.gelu_tanh_derivative(g)),
    "relu": (lambda m, g, alpha: m.relu(g), lambda m, g, alpha: m.step(g)),
    "relu2": (lambda m, g, alpha: m.relu(g) * m.relu(g), lambda m, g, alpha: 2 * m.relu(g)),
}


def gated(gate, up, experts, num):
    """hidden = a u:  a = act(min(gate, L)), or min(act(gate), L);  u = clip(up, -L, L) + offset.   Spec 3.2

    gate (N, F), up (N, F) -> hidden (N, F). No limit L: no clamp. Soft caps c: silu is c tanh(g / c) sigmoid(alpha g),
    and up becomes c tanh(up / c).
    """

    def formula(m, gate, up):
        return _gate_part(m, gate, experts) * _up_part(m, up, experts)

    return num.evaluate("hidden_rows", _named("gated", formula, experts), gate, up)


def gated_backward(d_hidden, gate, up, experts, num):
    """d_gate = d_hidden u da/dgate;  d_up = d_hidden a du/dup.   Spec 5.5

    d_hidden (N, F), gate (N, F), up (N, F) -> d_gate (N, F), d_up (N, F). A clamp passes the gradient at its limits.
    """

    def d_gate(m, d_hidden, gate, up):
        # hidden = a * u,   a = act(min(gate, L)) or min(act(gate), L)
        return _inside_gate(m, gate, d_hidden * _up_part(m, up, experts) * _gate_slope(m, gate, experts), experts)

    def d_up(m, d_hidden, gate, up):
        # hidden = a * u,   u = clip(up, -L, L) + offset, soft-capped before the offset
        value = d_hidden * _gate_part(m, gate, experts)
        if experts.up_softcap is not None:
            value = value * m.softcap_derivative(_clipped(m, up, experts), experts.up_softcap)
        return _where_inside(m, m.real(up), experts.limit, experts.limit, value)

    formulas = _named("gated_backward", (d_gate, d_up), experts)
    return num.evaluate_all(("d_gate_rows", "d_up_rows"), formulas, d_hidden, gate, up)


def plain(up, experts, num):
    """hidden = act(up).   Spec 3.2

    up (N, F) -> hidden (N, F)
    """
    act, _ = ACTIVATIONS[experts.activation]
    formula = _named("gated", lambda m, u: act(m, u, experts.alpha), experts)
    return num.evaluate("hidden_rows", formula, up)


def plain_backward(d_hidden, up, experts, num):
    """d_up = d_hidden act'(up).   Spec 5.5

    d_hidden (N, F), up (N, F) -> d_up (N, F)
    """
    _, slope = ACTIVATIONS[experts.activation]
    formula = _named("gated_backward", lambda m, d, u: d * slope(m, u, experts.alpha), experts)
    return num.evaluate("d_up_rows", formula, d_hidden, up)


def compiled_activation(experts):
    """The parameters by which an engine may know hidden = act(gate, up); None for what is rare.   Spec 3.2"""
    return _named("gated", None, experts).parameters or None


def _named(name, formula, experts):
    """The formula under the name by which an engine may know it; what is rare among models has none."""
    if experts.limit is not None and experts.limit_position == "post":
        return Named("", formula)
    caps = (experts.gate_softcap, experts.up_softcap) if experts.gated else ()
    return Named(name, formula, (experts.activation, experts.alpha, experts.limit, experts.linear_offset, *caps))


def _act(m, g, experts):
    """The activation, or silu with a soft cap on its linear factor."""
    if experts.gate_softcap is not None:
        return m.silu_softcapped(g, experts.alpha, experts.gate_softcap)
    return ACTIVATIONS[experts.activation][0](m, g, experts.alpha)


def _slope(m, g, experts):
    if experts.gate_softcap is not None:
        return m.silu_softcapped_derivative(g, experts.alpha, experts.gate_softcap)
    return ACTIVATIONS[experts.activation][1](m, g, experts.alpha)


def _before(m, gate, experts):
    """min(gate, L) where the limit stands before the activation."""
    before = experts.limit is not None and experts.limit_position == "pre"
    return m.minimum(gate, experts.limit) if before else gate


def _gate_part(m, gate, experts):
    """a = act(min(gate, L)), or min(act(gate), L)."""
    a = _act(m, _before(m, gate, experts), experts)
    after = experts.limit is not None and experts.limit_position == "post"
    return m.choose(a, experts.limit, a, experts.limit) if after else a


def _gate_slope(m, gate, experts):
    """act' where it is taken; what lies beyond a limit is left out by `_inside_gate`."""
    return _slope(m, _before(m, gate, experts), experts)


def _inside_gate(m, gate, value, experts):
    """value where the limit lets it pass: gate <= L, or act(gate) <= L."""
    if experts.limit is not None and experts.limit_position == "post":
        return value * m.choose(_act(m, gate, experts), experts.limit, 1, 0)
    return _where_inside(m, m.real(gate), None, experts.limit, value)


def _clipped(m, up, experts):
    return up if experts.limit is None else m.clip(up, -experts.limit, experts.limit)


def _up_part(m, up, experts):
    """u = clip(up, -L, L), soft-capped, + offset; each left alone where it is neutral."""
    u = _clipped(m, up, experts)
    if experts.up_softcap is not None:
        u = m.softcap(u, experts.up_softcap)
    return u + experts.linear_offset if experts.linear_offset else u


def _where_inside(m, real, below, above, value):
    if above is None:
        return value
    outside = real > above if below is None else (real > above) | (real < -below)
    inside = m.where(outside, 0, 1)
    return value * m.where(real != real, float("nan"), inside)  # NaN stays NaN, and 0 times infinity is NaN
