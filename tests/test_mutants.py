"""The gallery of wrong layers: the suite "conformance" rejects each under its flag, and lets correct ones pass."""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mutants import SOURCE, built, diff_lines, outcome, rejected_by, rejects, right, suite, text_of
from mutants.gallery import BF16, MUTANTS, VARIANTS
from mutants.table import block, flags_text, mutants_by_flag, replaced

from refmoe.golden.cases import conformance, conformance_flags
from refmoe.golden.classes import measure

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # overflows of wrong layers

README = Path(__file__).parent.parent / "README.md"


@cache
def matrix():
    """(flag, title) -> the cases that reject it."""
    return {(flag, title): rejected_by(*changes) for flag, title, *changes in MUTANTS}


# --- the gallery -----------------------------------------------------------------------------------------------------


def test_the_right_layer_shares_nothing_with_the_package():
    imported = {
        name.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Import) for name in node.names
    }
    imported |= {node.module for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"math", "numpy", "ml_dtypes"}


def test_every_mutant_is_a_small_change_in_one_place():
    assert len(MUTANTS) >= 40
    assert len({title for _, title, *_ in MUTANTS}) == len(MUTANTS)
    for flag, title, *changes in MUTANTS:
        assert 1 <= diff_lines(*changes) <= 10, (flag, title)
        ast.parse(text_of(*changes))
    with pytest.raises(ValueError, match="expected one place"):
        text_of(("no such line", ""))
    with pytest.raises(ValueError, match="expected one place"):
        text_of(("return", ""))


def test_every_flag_has_a_mutant_and_every_mutant_a_flag():
    assert {flag for flag, *_ in MUTANTS} == set(conformance.NOTES)
    assert all(mutants_by_flag().values())


# --- rejected, by the flag each was made for -------------------------------------------------------------------------


def test_every_mutant_is_rejected_and_gets_through_without_its_flag():
    for (flag, title), cases in matrix().items():
        assert cases, f"{flag}: {title}: nothing rejects it"
        strangers = [case.id for case in cases if flag not in case.flags]
        assert not strangers, f"{flag}: {title}: also rejected by {strangers}"


def test_a_case_bears_the_flags_it_catches_and_no_other():
    caught = {case.comment: [] for case in suite()}
    for (flag, _), cases in matrix().items():
        for case in cases:
            caught[case.comment] += [flag] * (flag not in caught[case.comment])
    assert caught == conformance_flags.FLAGS
    assert Path(conformance_flags.__file__).read_text(encoding="utf-8") == flags_text(caught)


def test_the_suite_is_needed_class_by_class():
    """Exact cases alone, or rounded ones, would let mutants through; so would either without the invalid ones."""
    for kind in ("exact", "rounded", "invalid"):
        assert any(all(case.kind == kind for case in cases) for cases in matrix().values()), kind
    kinds = [case.kind for case in suite()]
    assert kinds.count("exact") >= 45
    assert kinds.count("exact") > kinds.count("rounded")


def test_the_readme_shows_the_table():
    text = README.read_text(encoding="utf-8")
    assert block() in text
    assert replaced(text) == text
    with pytest.raises(ValueError, match="add them"):
        replaced("a page without marks")


# --- what is right passes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *VARIANTS])
def test_a_correct_layer_passes(name):
    run = built(*([] if name is None else [VARIANTS[name]]))
    assert not [case.id for case in suite() if rejects(case, outcome(run, case))]
    if name and name.startswith("float32"):
        assert any(not same(outcome(run, case), right(case.id)) for case in suite())


def same(made, other):
    if isinstance(made, Exception):
        return isinstance(other, type(made))
    return all(np.array_equal(made[name], other[name], equal_nan=True) for name in made)


def test_bf16_sums_pass_within_their_bound_and_not_within_that_of_float32():
    """On what is stored in bf16, and on what is exact there. A router of bf16 logits is the bug of its flag."""
    run = built(BF16)
    kept = [c for c in suite() if "RouterFloat32" not in c.flags and (c.store == "bf16" or "bf16" in c.exact_in)]
    assert len(kept) >= 45
    assert not [case.id for case in kept if rejects(case, outcome(run, case), "bf16")]
    assert [case.id for case in kept if rejects(case, outcome(run, case), "f32")]


def test_the_referee_itself():
    valid, refused = suite()[0], suite()[-1]
    made = right(valid.id)
    assert not rejects(valid, made)
    assert rejects(valid, ValueError("no"))
    assert rejects(valid, made | {"routed": made["routed"] + 2.0**-20})
    assert rejects(valid, made | {"routed": made["routed"][:1]})
    assert not rejects(refused, ValueError("no"))
    assert rejects(refused, KeyError("no"))
    assert rejects(refused, made)


# --- the edge cases of the field -------------------------------------------------------------------------------------


def ids(case):
    return case.inputs.get("topk_indices", np.zeros((0, 1), int))


def counts(case):
    used = ids(case)[ids(case) >= 0]
    return np.bincount(used, minlength=case.config["num_experts"]) if case.call == "routed" else np.ones(1)


def bias(case):
    return case.inputs.get("selection_bias", np.zeros(1))


def routing(case):
    return case.config.get("routing", {})


def capacity(case):
    return case.config.get("dispatch", {}).get("capacity")


EDGES = {
    "T = 0": lambda c: c.call == "routed" and len(c.inputs["x"]) == 0,
    "T = 0 in a router": lambda c: c.call == "route" and len(c.inputs.get("logits", [0])) == 0,
    "T = 1": lambda c: c.call == "routed" and len(c.inputs["x"]) == 1,
    "K = E": lambda c: c.call == "route" and c.config["top_k"] == c.config["num_experts"] > 1,
    "E = 1": lambda c: c.call == "route" and c.config["num_experts"] == 1,
    "E no power of two": lambda c: c.call == "routed" and c.config["num_experts"] in (3, 5, 6, 7),
    "first expert empty": lambda c: counts(c)[0] == 0 and counts(c)[1:].any(),
    "middle expert empty": lambda c: counts(c)[0] and counts(c)[-1] and (counts(c)[1:-1] == 0).any(),
    "last expert empty": lambda c: counts(c)[-1] == 0 and counts(c)[0],
    "all but one empty": lambda c: len(counts(c)) >= 4 and (counts(c) > 0).sum() == 1,
    "a rank without rows": lambda c: len(counts(c)) == 4 and not counts(c)[:2].any() and counts(c)[2:].all(),
    "capacity 0": lambda c: capacity(c) == 0,
    "capacity 1": lambda c: capacity(c) == 1,
    "capacity above T": lambda c: capacity(c) is not None and capacity(c) > len(c.inputs["x"]),
    "T K no multiple of a block": lambda c: c.call == "routed" and ids(c).size > 4 and ids(c).size % 4,
    "negative biases with groups": lambda c: "num_groups" in routing(c) and (bias(c) < 0).all(),
    "a bias of 12 and a score of 1e-8": lambda c: bias(c).max() == 12 and c.inputs["logits"].min() == -18,
    "all sigmoids below 1e-20": lambda c: routing(c).get("score_fn") == "sigmoid" and c.inputs["logits"].max() < -46.1,
    "identical logits": lambda c: c.call == "route" and c.inputs.get("logits", np.zeros(0)).size > 3
    and np.ptp(c.inputs["logits"]) == 0,
    "a weight of exactly 0": lambda c: c.call == "routed" and (c.inputs["topk_weights"] == 0).any(),
    "logits of 90 and -90": lambda c: {90, -90} <= set(c.inputs.get("logits", np.zeros(0)).ravel().tolist()),
    "padding tokens": lambda c: len(set(c.inputs.get("token_mask", np.ones(1)).tolist())) == 2,
    "K = 1, renormalised": lambda c: c.config["top_k"] == 1 and routing(c).get("normalize"),
    "replayed, not the best": lambda c: c.call == "route" and ids(c).tolist() == [[3, 0], [1, 3]],
    "an expert named twice": lambda c: bool(c.refused) and any(len(set(row)) < len(row) for row in ids(c).tolist()),
    "unused slots": lambda c: (ids(c) == -1).any(),
}  # fmt: skip


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_case_is_there(edge):
    assert any(EDGES[edge](case) for case in suite())


def ranked_cases():
    """Routers that choose: by logits of their own, more experts than slots."""
    chosen = [c for c in suite() if c.call == "route" and not c.refused and "topk_indices" not in c.inputs]
    return [c for c in chosen if c.config["top_k"] < c.config["num_experts"] and right(c.id)["scores"].size]


def test_router_cases_carry_margins_and_ties_stand_apart():
    assert len(ranked_cases()) >= 18
    for case in ranked_cases():
        margins = measure(case, case.inputs).margins
        largest = np.abs(right(case.id)["scores"]).max(axis=-1)
        flags = {"TieHighestId", "RouterFloat32"} & set(case.flags)
        assert flags or (margins >= 2.0**-6 * largest).all(), case.comment
        assert ("TieHighestId" in case.flags) == bool((margins == 0).any()), case.comment
