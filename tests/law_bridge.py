"""Between the law's scalars and the library's arrays: stored values both ways, and comparison of every bit."""

import importlib.util
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import refmoe
from refmoe.formats import FORMATS, round_to
from refmoe.recipes import CONSTANT_PARAMS, assemble_params, generate, name_params

SPEC = Path(__file__).parent.parent / "spec"


def load_chapters():
    """spec/chapters.py as a module, wherever the tests are run from."""
    found = importlib.util.spec_from_file_location("spec_chapters", SPEC / "chapters.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


CHAPTERS = load_chapters()
LAW = SimpleNamespace(**CHAPTERS.load())
TAGGED = {"-0": -0.0, "+inf": np.inf, "-inf": -np.inf, "nan": np.nan}


STORES = ("float32", "bf16", "fp16")
PROFILES = [("exact", store) for store in STORES] + [("chain", store) for store in STORES]
SIZES = {"hidden_size": 5, "intermediate_size": 3, "num_experts": 6, "top_k": 2}


def policy(profile="exact", store="float32"):
    """The library on NumPy, so that a disagreement has one suspect: C is held against NumPy in its own tests."""
    return refmoe.Numerics(profile=profile, store=store, backend="numpy")


def config_of(**fields):
    """A configuration of small sizes with these fields."""
    return refmoe.MoEConfig.from_dict(SIZES | fields)


def to_law(value):
    """An array (or None) as nested lists of stored values; integers and booleans stay."""
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.ndim:
        return [to_law(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int):
        return value
    if value != value:
        return "nan"
    if abs(value) == np.inf:
        return "+inf" if value > 0 else "-inf"
    return "-0" if value == 0 and np.signbit(value) else Fraction(value)


def from_law(value, dtype, shape):
    """Nested lists of stored values as an array; a fraction that the type cannot hold is an error."""
    return np.array([_element(v, dtype) for v in _leaves(value)], dtype).reshape(shape)


def _leaves(value):
    if isinstance(value, list):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _element(v, dtype):
    if isinstance(v, str):
        return TAGGED[v]
    number = dtype.type(float(v)) if isinstance(v, Fraction) else dtype.type(v)
    assert Fraction(number.item()) == v, f"{v} is not a value of {dtype}"
    return number


def differences(law, got, where=""):
    """Names and first elements of what differs in any bit (every NaN is one value); dictionaries go name by name."""
    if isinstance(law, dict):
        fields = got if isinstance(got, dict) or got is None else {name: getattr(got, name) for name in got._fields}
        assert fields is not None and law.keys() == fields.keys(), f"{where}: {sorted(law)} against {fields}"
        return [line for name in law for line in differences(law[name], fields[name], f"{where}.{name}")]
    if law is None or got is None:
        return [] if law is None and got is None else [f"{where}: {type(law).__name__} against {type(got).__name__}"]
    got = np.asarray(got)
    want = from_law(law, got.dtype, got.shape)
    wrong = np.argwhere(_bits(want) != _bits(got))
    if not len(wrong):
        return []
    at = tuple(int(i) for i in wrong[0])
    return [f"{where}{list(at)} ({len(wrong)} of {want.size}): law {want[at].item()!r}, library {got[at].item()!r}"]


def _bits(array):
    if array.dtype.kind != "f":
        return array
    canonical = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return canonical.view(f"u{array.dtype.itemsize}")


def agree(law, got, where=""):
    """Asserts that not a bit differs."""
    found = differences(law, got, where)
    assert not found, "\n".join(found[:8])


# --- inputs ----------------------------------------------------------------------------------------------------------


def edge_values(store, infinite=True):
    """Where things go wrong in a format: zeros, ends of the subnormals, one and its neighbours, the largest."""
    row = FORMATS[store]
    least, step = 2.0**row.quantum, 2.0 ** (1 - row.precision)
    small = [0.0, least, 3 * least, 2.0**row.emin - least, 2.0**row.emin]
    large = [0.5, 1 - step / 2, 1.0, 1 + step, 3.0, 2.0 ** (row.emax // 2), row.largest]
    values = np.array([*small, *large] + ([np.inf] if infinite else []))
    return np.concatenate([values, -values] + ([[np.nan]] if infinite else [])).astype(row.carrier)


def wild(store, shape, seed, scale=40):
    """Values of the format over `scale` binades, with zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    values = np.ldexp(rng.integers(-(2**24), 2**24, shape) / 2.0**24, rng.integers(-scale, scale // 4, shape))
    values[rng.random(shape) < 0.05] = -0.0
    return round_to(values, store)


def tame(store, shape, seed):
    """Values of order one."""
    return round_to(generate("tame", shape, seed), store)


def stored_params(params, store):
    """Every parameter as the store holds it; the selection bias stays float32."""
    named = name_params(params).items()
    return assemble_params({n: a if n in CONSTANT_PARAMS else round_to(a, store) for n, a in named})


def law_params(params):
    """MoEParams as the law takes them."""
    return {name: to_law(array) for name, array in name_params(params).items()}


def operands(store, shape, seed, kind):
    """Operands of one kind: edge values with or without infinities and NaN, or values over many binades."""
    if kind == "edges":
        return np.random.default_rng(seed).choice(edge_values(store), shape)
    if kind == "finite edges":
        return np.random.default_rng(seed).choice(edge_values(store, infinite=False), shape)
    return wild(store, shape, seed)


def hard_logits(seed, shape=(24, 6), distant=True):
    """Rows with ties, zeros of both signs, near ties, mirrored pairs, large and (if `distant`) very distant entries."""
    rng = np.random.default_rng(seed)
    z = rng.choice([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0**-149, 20.0, -20.0, 88.0, -104.0, 1 + 2.0**-23], shape)
    z[: shape[0] // 3] = rng.standard_normal((shape[0] // 3, shape[1]))
    z[3] = 1.5
    z[4] = [3e38, -3e38, 0.0, 3e38, -1e38, 1e30][: shape[1]] if distant else np.arange(shape[1])
    z[5] = np.nextafter(np.float32(-4000.0 if distant else -2.0), np.float32(0)) - np.arange(shape[1])
    return z.astype(np.float32)
