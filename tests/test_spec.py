"""The law against the library: the book itself, values, contractions and sums, with not a bit of difference."""

import ast
import doctest
import json
import re
import statistics
import traceback
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from law_bridge import (
    CHAPTERS,
    LAW,
    PROFILES,
    SPEC,
    agree,
    edge_values,
    operands,
    policy,
    to_law,
)

import refmoe
from refmoe import Given, MoEConfig, activations, dispatch, losses, routing, scores, selection
from refmoe.config.fields import field_rows
from refmoe.formats import FORMATS, round_fraction, round_to
from refmoe.numerics import FORMAT_OF

# --- the book itself -------------------------------------------------------------------------------------------------


def law_functions():
    sources = [source for path in CHAPTERS.law_chapters() for _, source in CHAPTERS.fences(path)]
    return [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]


def test_fences_import_the_standard_library_only():
    for path in CHAPTERS.law_chapters():
        for _, source in CHAPTERS.fences(path):
            for node in ast.walk(ast.parse(source)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert set(names) <= {"decimal", "fractions", "functools", "math", "typing"}, f"{path.name}: {names}"


def test_fences_are_short_and_named_once():
    lengths = [node.end_lineno - node.lineno + 1 for node in law_functions()]
    assert statistics.median(lengths) <= 10
    assert max(lengths) <= 20
    top = [n for path in CHAPTERS.law_chapters() for _, source in CHAPTERS.fences(path) for n in ast.parse(source).body]
    names = [n.name for n in top if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))


def test_every_chapter_has_numbered_sections_in_order():
    for path in CHAPTERS.law_chapters():
        numbers = re.findall(r"^## (\d)\.(\d+) ", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert numbers == [(path.name[0], str(i + 1)) for i in range(len(numbers))], path.name
        assert numbers, path.name


def test_a_traceback_points_into_the_chapter():
    with pytest.raises(ValueError) as caught:
        LAW.check_indices([1, 1], 4)
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert frame.filename.endswith("1-routing.md")
    assert frame.line in (SPEC / "1-routing.md").read_text(encoding="utf-8").splitlines()[frame.lineno - 1]


PAIRED = [
    *(f for pair in scores.SCORE_FNS.values() for f in pair),
    *(f for pair in losses.LOSSES.values() for f in pair),
    *dispatch.DROP_POLICIES.values(),
    *(rule.choose for rule in selection.SELECTIONS.values()), selection.is_causal,
    *(getattr(activations, name) for name in ("gated", "gated_backward", "plain", "plain_backward")),
    *(getattr(dispatch, name) for name in ("permute", "permute_backward", "combine", "combine_backward", "make_plan")),
    *(getattr(routing, name) for name in ("router_logits", "router_logits_backward", "choice_scores", "select_topk")),
    *(getattr(routing, name) for name in ("topk_weights", "topk_weights_backward")),
    refmoe.moe_forward, refmoe.moe_backward, refmoe.update_selection_bias,
]  # fmt: skip


@pytest.mark.parametrize("function", PAIRED, ids=lambda f: f.__name__)
def test_every_rule_of_the_library_has_a_section(function):
    """The docstring names a section; the section exists and has a fence under it."""
    cited = re.search(r"Spec (\d\.\d+)", function.__doc__ or "")
    assert cited, f"{function.__name__} cites no section"
    assert cited[1] in CHAPTERS.sections()
    text = (next(SPEC.glob(f"{cited[1][0]}-*.md"))).read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)[int(cited[1].split(".")[1])]
    assert section.startswith(cited[1]) and "```python" in section


def test_the_readme_of_the_law_runs_as_shown():
    text = (SPEC / "README.md").read_text(encoding="utf-8")
    session = "\n".join(line for line in text.splitlines() if not line.startswith("```"))
    shown = doctest.DocTestParser().get_doctest(session.split("## Order")[0], {}, "spec/README.md", None, 0)
    assert len(shown.examples) == 6
    shown.examples = shown.examples[2:]  # the first two find the folder
    shown.globs = {"chapters": CHAPTERS}
    shown.examples.insert(0, doctest.Example("law = chapters.load()\n", ""))
    runner = doctest.DocTestRunner(verbose=False)
    assert runner.run(shown).failed == 0


def test_every_divergence_names_vectors_and_fields_that_exist():
    text = (SPEC / "8-divergences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*.*\| (.*) \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) >= 50
    listed = list(field_rows(MoEConfig))
    words = {word for row in listed for word in (*row.path.split("."), *re.findall(r'"([^"]+)"', row.values))}
    words |= {*Given._fields, "pooled_balance_loss"}
    known = {
        suite.stem: set(json.loads(suite.read_text(encoding="utf-8"))["notes"])
        for suite in SPEC.glob("vectors/*/*.json")
    }
    for said, vectors in rows:
        assert set(re.findall(r"`(\w+)`", said)) <= words, said
        suite, flags = vectors.split(" ", 1)
        assert set(re.findall(r"`(\w+)`", flags)) <= known[suite], vectors


# --- 0, 6: values, formats, contractions, sums -----------------------------------------------------------------------


def hard_doubles(fmt):
    """float64 values on, just above and just below the midpoints of a format, over all its exponents."""
    row, rng = FORMATS[fmt], np.random.default_rng(3)
    exponents = rng.integers(max(row.quantum - 2, -1000), row.emax + 1, 300)
    quanta = np.maximum(exponents, row.emin) - row.precision
    middles = np.ldexp(rng.integers(1, 2 ** (row.precision + 1), 300).astype(np.float64) * 2 + 1, quanta - 1)
    with np.errstate(over="ignore"):
        around = [middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf)]
    return np.concatenate(
        [*around, edge_values(fmt, infinite=False).astype(np.float64), [row.largest * (1 + 2.0**-53)]]
    )


@pytest.mark.parametrize("fmt", ["float32", "bf16", "fp16"])
def test_rounding(fmt):
    values = hard_doubles(fmt)
    values = np.concatenate([values[np.isfinite(values)], -values[np.isfinite(values)]])
    law = [LAW.round_to(Fraction(v), fmt) for v in values]
    agree(
        [Fraction(0) if v == 0 and isinstance(w, Fraction) else w for v, w in zip(values, law)],
        round_to(values + 0.0, fmt),
    )
    agree(law, np.array([round_fraction(Fraction(v), fmt) for v in values], FORMATS[fmt].carrier))


def test_formats_of_stages():
    for name, kind in FORMAT_OF.items():
        for law in (LAW.Law("exact", "bf16"), LAW.Law("float64", "float64")):
            assert LAW.format_of(name, law) == policy(*law).format_of(name), name
        assert (kind == "float32") == (name in LAW.FLOAT32_STAGES), name
    assert set(FORMAT_OF) >= LAW.FLOAT32_STAGES


CONTRACTIONS = [*PROFILES, ("float64", "float64")]


@pytest.mark.parametrize("kind", ["edges", "finite edges", "wild"])
@pytest.mark.parametrize(("profile", "store"), CONTRACTIONS)
@pytest.mark.parametrize("K", [0, 1, 2, 5])
def test_contractions(profile, store, kind, K):
    """out = x w^T + b, and both products of the way back, each with its own format and order."""
    num, law = policy(profile, store), LAW.Law(profile, store)
    x, w = operands(store, (5, K), 1, kind), operands(store, (6, K), 2, kind)
    d, b = operands(store, (5, 6), 3, kind), operands(store, (6,), 4, kind)
    X, W, d_law, B = to_law(x), to_law(w), to_law(d), to_law(b)
    for name in ("gate_rows", "logits"):
        agree([LAW.linear(name, row, W, B, law) for row in X], num.contract(name, x, w, bias=b), "with bias")
        agree([LAW.linear(name, row, W, None, law) for row in X], num.contract(name, x, w), "without bias")
    if K:
        maps, pairs = [(W, d_law), (W[::-1], d_law)], [(d, w), (d, np.ascontiguousarray(w[::-1]))]
        law_x = [LAW.linear_backward_x("d_x_rows", [(row, m) for m, _ in maps], law) for row in d_law]
        agree(law_x, num.contract_backward_x("d_x_rows", pairs), "backward x")
    agree(LAW.linear_backward_w("d_w_up", d_law, X, 6, K, law), num.contract_backward_w("d_w_up", d, x), "backward w")


@pytest.mark.parametrize("kind", ["edges", "finite edges", "wild"])
@pytest.mark.parametrize(("profile", "store"), CONTRACTIONS)
def test_sums(profile, store, kind):
    num, law = policy(profile, store), LAW.Law(profile, store)
    a, b, c, d = (operands(store, (300,), seed, kind) for seed in range(4))
    made = [LAW.sum_of("routed", [(p,), (q, r), (s,)], law) for p, q, r, s in zip(*map(to_law, (a, b, c, d)))]
    agree(made, num.sum("routed", [a, (b, c), d]))


@pytest.mark.parametrize(
    "name", ["exp", "sigmoid", "softplus", "normal_cdf", "normal_density", "tanh_argument", "log", "sqrt"]
)
def test_enclosures_contain_the_truth(name):
    """The law's intervals against mpmath, which knows nothing of them."""
    truth = {
        "exp": mpmath.exp, "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        "softplus": lambda v: mpmath.log1p(mpmath.exp(v)),
        "normal_cdf": mpmath.ncdf, "normal_density": mpmath.npdf, "log": mpmath.log, "sqrt": mpmath.sqrt,
        "tanh_argument": lambda v: 2 * mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf(0.044715) * v**3),
    }[name]  # fmt: skip
    values = [0.3, -3.0, 12.0, -20.5, 1e-20, -1e-30, -39.0, -700.0, 60.0, 1 + 2.0**-23, 40.5, -40.5, 0.5]
    with mpmath.workdps(1500):
        for v in values if name not in ("log", "sqrt") else map(abs, values):
            argument = Fraction(v) if name in ("normal_cdf", "normal_density", "tanh_argument") else LAW.real(v)
            for digits in (30, 120):
                made = getattr(LAW, name)(argument, digits)
                low, high = (mpmath.mpf(end.numerator) / end.denominator for end in (made.low, made.high))
                assert low < truth(mpmath.mpf(v)) < high, (name, v, digits)
                assert high - low < mpmath.mpf(10) ** (6 - digits) * max(abs(high), 1)
