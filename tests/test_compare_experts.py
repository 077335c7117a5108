"""Gradients of expert weights are judged an expert at a time: the same verdict as of the whole, in little memory."""

import tracemalloc
import weakref

import numpy as np
import pytest
from other_kernels import Case, mine_of, plain_config

from refmoe.compare import Mine, compare_tensors, find_accumulator
from refmoe.compare.groups import Grouping
from refmoe.compare.tracked import FIELDS, track
from refmoe.compare.verdicts import judge

NAME = "grads.params.w_up"


@pytest.fixture(scope="module")
def case():
    return Case(plain_config(hidden_size=40, intermediate_size=32, num_experts=5), 12)


class Parts:
    """A submission of which no more than one expert's part should be alive."""

    def __init__(self, array):
        self.shape, self.dtype = array.shape, np.dtype(np.float64)
        self._array, self._alive, self.most = array, [], 0

    def __getitem__(self, e):
        made = self._array[e].astype(np.float64)
        self._alive = [ref for ref in self._alive if ref() is not None] + [weakref.ref(made)]
        self.most = max(self.most, len(self._alive))
        return made


def stacked(late):
    parts = [late.part(e) for e in range(len(late))]
    fields = {field: np.stack([part.part(field) for part in parts]) for field in FIELDS}
    return track(np.stack([np.asarray(part) for part in parts]), **fields)


def spoilt(array):
    array = array.copy()
    array[3] *= np.float32(1 + 2**-14)
    array[1, 17:, :] += np.float32(2**-12)
    array[4, 5, 6] = np.nan
    return array


@pytest.mark.parametrize("change", [np.copy, spoilt])
def test_the_verdict_of_the_parts_is_that_of_the_whole(case, change):
    array = change(case.of()[NAME])
    comparison = case.compare({NAME: array})
    law = stacked(comparison.own.tensors[NAME])
    view = Grouping(5, np.arange(5).reshape(5, 1, 1), summed=True)
    got, want = comparison.verdicts[0], judge(NAME, mine_of(array), law, law, view, case.num, 0.0)
    fields = ("verdict", "elements", "matched", "ulp", "of_rigorous", "of_statistical", "place")
    fields += ("added", "inherited", "unfinished", "exact")
    assert {f: getattr(got, f) for f in fields} == {f: getattr(want, f) for f in fields}
    assert np.allclose(got.trends.whole[1:5], want.trends.whole[1:5], rtol=1e-6)
    assert np.allclose([t[:5] for t in got.trends.by_expert], [t[:5] for t in want.trends.by_expert], rtol=1e-6)
    assert got.verdict == ("passed" if change is np.copy else "wrong")


def test_no_more_than_one_expert_is_held():
    config = plain_config(hidden_size=64, intermediate_size=64, num_experts=48, top_k=1)
    case = Case(config, 24)
    array = case.of()[NAME]
    values, row = Parts(array), find_accumulator("f32")
    tracemalloc.start()
    comparison = compare_tensors(config, case.inputs, case.num, {NAME: Mine(values, "F32")}, row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert comparison.passed()
    assert values.most <= 2, "the last one may not yet be gone when the next is made"
    assert peak < 8 * array.size * 8, "all experts at once take more than twenty arrays of float64"


def test_an_expert_of_another_shape_or_type_is_refused_before_anything_is_judged(case):
    for shape in ((5, 40, 32), (4, 32, 40), (5, 32)):
        with pytest.raises(ValueError, match=rf"{NAME}: expected shape \(5, 32, 40\), got"):
            case.compare({NAME: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=f"{NAME}: expected floats, got I64"):
        case.compare({NAME: np.zeros((5, 32, 40), np.int64)})


def test_a_spoilt_part_names_its_expert_and_its_rows(case):
    array = case.of()[NAME].copy()
    array[2, 16:] *= np.float32(1 + 2**-16)
    first = case.compare({NAME: array}).first
    assert (first.worst_expert, first.trends.block.group, first.trends.block.rows) == (2, 2, (16, 31))
