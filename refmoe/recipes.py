"""The counter-based integer generator: inputs and parameters, the same bits in any language.   Spec 7.2

Element i of the tensor `name` under `seed` is a function of (seed, name, i) alone, so one expert, row or element can
be made without the rest. Only 64-bit integer arithmetic is used, and every value is exact in float32.
"""

from math import prod
from typing import NamedTuple

import numpy as np

from .refusals import is_integer, require, shown

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_BLOCK = 1 << 16  # elements worked on at a time: the temporaries stay in cache


INTEGER_PARAMS = ("hash_table",)  # ids, not numbers: without format, rounding or gradient
CONSTANT_PARAMS = ("selection_bias", *INTEGER_PARAMS)  # parameters that nothing flows into


class MoEParams(NamedTuple):
    """The layer's parameters, contracted axis last; None for what a configuration lacks. Also the type of gradients."""

    w_router: object = None  # (E, D)
    router_bias: object = None  # (E,)
    selection_bias: object = None  # (E,), float32 in every store
    w_gate: object = None  # (E, F, D)
    w_up: object = None  # (E, F, D)
    w_down: object = None  # (E, D, F)
    b_gate: object = None  # (E, F)
    b_up: object = None  # (E, F)
    b_down: object = None  # (E, D)
    shared: object = None  # SharedParams
    router_norm: object = None  # (D,), of the router's normalised input
    w_noise: object = None  # (E, D), of the noise's standard deviation
    w_shared_router: object = None  # (n, D), of the shared experts' weights
    expert_scale: object = None  # (E,), of the weights
    global_scale: object = None  # (1,), of all weights
    soft_scale: object = None  # (1,), of a soft mixture's logits
    hash_table: object = None  # (V, K) int64, expert ids of each token id; carries no gradient
    w_constant: object = None  # (C, 2, D), of constant experts: how much of x, how much of the vector
    constant: object = None  # (C, D), their vectors
    w_latent_in: object = None  # (l, D), into the narrower space
    w_latent_pre_norm: object = None  # (l,)
    w_post_expert_norm: object = None  # (D,), or (l,): of each expert's output, one for all
    w_latent_post_norm: object = None  # (l,)
    w_latent_out: object = None  # (D, l), back
    output_bias: object = None  # (D,), of the routed sum
    w_output_norm: object = None  # (D,)


class SharedParams(NamedTuple):
    """The parameters of n shared experts of width S, expert by expert as the routed ones."""

    w_gate: object = None  # (n, S, D)
    w_up: object = None  # (n, S, D)
    w_down: object = None  # (n, D, S)
    b_gate: object = None  # (n, S)
    b_up: object = None  # (n, S)
    b_down: object = None  # (n, D)
    w_shared_gate: object = None  # (1, D)


def mix64(z):
    """The finaliser of splitmix64 on a Python integer: a bijection of 64-bit words."""
    z &= _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)


def tensor_key(seed, name):
    """mix64(fnv1a64(name) + seed * golden): the starting point of one tensor's counter.

    Raises TypeError or ValueError for a seed that is not an integer of 64 bits: other languages have no larger ones.
    """
    require(is_integer(seed), TypeError, "seed", "an integer", shown(seed), "give one of 0 .. 2^64 - 1")
    require(0 <= seed <= _MASK, ValueError, "seed", "an integer of 0 .. 2^64 - 1", repr(seed), "choose another")
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = ((digest ^ byte) * 0x100000001B3) & _MASK
    return mix64(digest + int(seed) * _GOLDEN)


def words(seed, name, start, count):
    """word_i = mix64(key + (i + 1) * golden) for i = start .. start + count - 1, as uint64."""
    z = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(tensor_key(seed, name))
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def _bell(word):
    """The sum of the word's four 16-bit fields, centred: an integer in +-131070, in units of 2^-16 (sigma 0.577)."""
    total = np.zeros(word.shape, np.int32)
    for field in range(4):
        total += ((word >> np.uint64(16 * field)) & np.uint64(0xFFFF)).astype(np.int32)
    return (total - 131070).astype(np.float32) * np.float32(2.0**-16)


def _bf16(word):
    """The bell value with the low 16 bits of its float32 pattern cleared: 8 significant bits."""
    return (_bell(word).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _wide(word):
    """sign, 23 fraction bits and an exponent from -20 to 19: 24 significant bits over 40 binades."""
    fraction = (word & np.uint64(0x7FFFFF)).astype(np.uint32)
    exponent = ((word >> np.uint64(32)) % np.uint64(40)).astype(np.uint32) + np.uint32(127 - 20)
    sign = (word >> np.uint64(63)).astype(np.uint32)
    return (sign << np.uint32(31) | exponent << np.uint32(23) | fraction).view(np.float32)


def _dyadic(word):
    """An integer from -4 to 4: products and sums of them are exact in any order."""
    return ((word >> np.uint64(32)) % np.uint64(9)).astype(np.float32) - np.float32(4)


def _unit(word):
    """The word's highest 24 bits as a fraction: uniform in [0, 1)."""
    return (word >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


RECIPES = {"bell": _bell, "bf16": _bf16, "wide": _wide, "dyadic": _dyadic, "unit": _unit}


def generate(name, shape, seed, recipe="bell", exponent=0, start=0):
    """recipe(word_i) * 2^exponent, as float32 of the given shape, from element `start` on.   Spec 7.2

    Raises ValueError for an unknown recipe, and for an exponent outside -100 .. 100: there every value is normal in
    float32.
    """
    ok = isinstance(recipe, str) and recipe in RECIPES
    require(ok, ValueError, "recipe", f"one of {', '.join(RECIPES)}", repr(recipe), "choose one of these")
    ok = type(exponent) is int and abs(exponent) <= 100
    require(ok, ValueError, "exponent", "an integer from -100 to 100", repr(exponent), "choose a smaller scale")
    count = prod(shape)
    out = np.empty(count, np.float32)
    scale = np.float32(2.0**exponent)
    for at in range(0, count, _BLOCK):
        size = min(_BLOCK, count - at)
        out[at : at + size] = RECIPES[recipe](words(seed, name, start + at, size)) * scale
    return out.reshape(shape)


def generate_ids(name, shape, seed, count, start=0):
    """word_i mod count, as int64 of the given shape, from element `start` on.   Spec 7.2"""
    size = prod(shape)
    return (words(seed, name, start, size) % np.uint64(count)).astype(np.int64).reshape(shape)


def generate_table(name, shape, seed, count):
    """Row v: (word_v + j) mod count for column j: ids that differ within a row, as int64.   Spec 7.2"""
    first = generate_ids(name, (shape[0], 1), seed, count)
    return (first + np.arange(shape[1], dtype=np.int64)) % count


def fan_in_exponent(fan_in):
    """The exponent s of the scale 2^s nearest below 1/sqrt(fan_in): -ceil(log2(fan_in) / 2), by integers."""
    return -(((fan_in - 1).bit_length() + 1) // 2)


def parameter_shapes(config):
    """name -> (shape, exponent of its scale) of every parameter a configuration has, in the order of `MoEParams`;
    kept with it, and not to be changed.
    """
    kept = vars(config)  # a configuration never changes: each call of a layer asks, and one of a token is short
    if "_parameter_shapes" not in kept:
        kept["_parameter_shapes"] = _make_shapes(config)
    return kept["_parameter_shapes"]


def _make_shapes(config):
    D, F, E = config.hidden_size, config.intermediate_size, config.num_experts
    routing, experts = config.routing, config.experts
    ids = config.num_choices
    shapes = {"w_router": ((config.num_logits, D), fan_in_exponent(D))}
    if routing.router_bias:
        shapes["router_bias"] = ((ids,), -3)
    if routing.selection_bias:
        shapes["selection_bias"] = ((ids,), -3)
    if routing.input_norm == "rms_scaled":
        shapes["router_norm"] = ((D,), 0)
    if routing.noise == "learned":
        shapes["w_noise"] = ((config.num_choices, D), fan_in_exponent(D))
    if routing.norm_over_shared:
        shapes["w_shared_router"] = ((experts.shared_count, D), fan_in_exponent(D))
    if routing.per_expert_scale:
        shapes["expert_scale"] = ((config.num_choices,), 0)
    if routing.global_scale:
        shapes["global_scale"] = ((1,), 0)
    if routing.selection == "soft":
        shapes["soft_scale"] = ((1,), 0)
    if routing.hash_vocab_size:
        shapes["hash_table"] = ((routing.hash_vocab_size, config.top_k), 0)
    shapes |= _expert_shapes(experts, config.expert_width, F, E)
    S = experts.shared_intermediate_size
    if S:
        shapes |= {f"shared.{name}": row for name, row in _expert_shapes(experts, D, S, experts.shared_count).items()}
    if experts.shared_gate:
        shapes["shared.w_shared_gate"] = ((1, D), fan_in_exponent(D))
    return shapes | _output_shapes(experts, D, config.expert_width)


def _output_shapes(experts, D, width):
    """Of everything between the tokens and the matrices of the experts, and behind them."""
    shapes, C, latent = {}, experts.constant_experts, experts.latent_size
    if C:
        shapes |= {"w_constant": ((C, 2, width), fan_in_exponent(width)), "constant": ((C, width), -1)}
    if latent:
        shapes |= {
            "w_latent_in": ((latent, D), fan_in_exponent(D)),
            "w_latent_out": ((D, latent), fan_in_exponent(latent)),
        }
    if experts.output_bias:
        shapes["output_bias"] = ((D,), -3)
    norms = {"latent_pre_norm": width, "post_expert_norm": width, "latent_post_norm": width, "output_norm": D}
    for name, size in norms.items():
        kind = getattr(experts, name)
        if kind != "none":
            shapes[f"w_{name}"] = ((size,), 0 if kind == "rms" else -3)
    return shapes


def _expert_shapes(experts, D, F, E):
    into, back = fan_in_exponent(D), fan_in_exponent(F)
    shapes = {"w_gate": ((E, F, D), into), "w_up": ((E, F, D), into), "w_down": ((E, D, F), back)}
    if experts.biases:
        shapes |= {"b_gate": ((E, F), -3), "b_up": ((E, F), -3), "b_down": ((E, D), -3)}
    return shapes if experts.gated else {n: s for n, s in shapes.items() if not n.endswith("_gate")}


DRAWN = ("coin", "priority", "noise", "jitter")  # of `Given`: what a random rule would draw


def given_shapes(config, num_tokens):
    """name -> (shape, recipe) of the arrays of `Given` that a rule of the configuration reads."""
    shapes = {}
    if config.routing.second_expert == "random":
        shapes["coin"] = ((num_tokens,), "unit")
    if config.dispatch.drop_policy == "random":
        shapes["priority"] = ((num_tokens, config.top_k), "unit")
    if config.routing.noise != "none" or config.routing.second_expert == "sampled":
        shapes["noise"] = ((num_tokens, config.num_choices), "bell")
    if config.routing.jitter != "none":
        shapes["jitter"] = ((num_tokens, config.hidden_size), "bf16")
    return shapes


def init_given(config, num_tokens, seed=0):
    """The same as a dictionary of float32 arrays by integer recipe, and the words a table is asked for.   Spec 7.2"""
    shapes, V = given_shapes(config, num_tokens), config.routing.hash_vocab_size
    made = {name: generate(name, shape, seed, recipe) for name, (shape, recipe) in shapes.items()}
    return made | ({"token_ids": generate_ids("token_ids", (num_tokens,), seed, V)} if V else {})


def carried(array, dtype):
    """The array in the type of a policy; ids, which are not numbers, as they are.   Spec 7.2"""
    return array if array.dtype.kind in "iu" else array.astype(dtype)


def init_params(config, seed=0, recipe="bell"):
    """Every parameter by integer recipe: the same bits on every machine and in every language.   Spec 7.2

    Weights are scaled by a power of two near 1/sqrt(fan_in), biases by 2^-3. recipe "bf16" gives values that every
    store can hold. Raises TypeError or ValueError for what is not a configuration, a seed or a recipe.
    """
    got = type(config).__name__
    require(hasattr(config, "num_choices"), TypeError, "config", "a MoEConfig", got, "use load_preset or MoEConfig")
    shapes = parameter_shapes(config).items()
    made = {n: generate(n, shape, seed, recipe, e) for n, (shape, e) in shapes if n not in INTEGER_PARAMS}
    tables = {n: generate_table(n, shape, seed, config.num_choices) for n, (shape, _) in shapes if n in INTEGER_PARAMS}
    return assemble_params(made | tables)


def assemble_params(arrays):
    """A dictionary of parameters by name ("w_gate", "shared.w_gate" ...) -> MoEParams; missing ones are None."""
    shared = {name.removeprefix("shared."): a for name, a in arrays.items() if name.startswith("shared.")}
    routed = {name: a for name, a in arrays.items() if not name.startswith("shared.")}
    inner = SharedParams(**{f: shared.get(f) for f in SharedParams._fields}) if shared else None
    return MoEParams(**{f: routed.get(f) for f in MoEParams._fields if f != "shared"}, shared=inner)


def name_params(params):
    """MoEParams -> dictionary by name; the inverse of `assemble_params`."""
    named = {f: array for f, array in zip(MoEParams._fields, params, strict=True) if array is not None}
    inner = named.pop("shared", None)
    if inner is not None:
        arrays = zip(SharedParams._fields, inner, strict=True)
        named |= {f"shared.{f}": array for f, array in arrays if array is not None}
    return named
