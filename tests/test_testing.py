"""refmoe.testing: vectors and bundles as tests of other people's kernels, with anybody's arrays."""

import ml_dtypes
import numpy as np
import pytest
from other_kernels import Case as GoldenCase
from other_kernels import Other, plain_config

import refmoe
from refmoe.golden import write_bundle
from refmoe.testing import assert_conforms, cases, find_case
from refmoe.testing.arrays import read_array
from refmoe.testing.vectors import results

pytest_plugins = ["pytester"]


class Dlpack:
    """An array of a library that knows DLPack and nothing else."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **words):
        return self._array.__dlpack__(**words)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Torch:
    """A tensor as PyTorch's: bfloat16 has no NumPy twin, and widens itself."""

    dtype = "torch.bfloat16"

    def __init__(self, array):
        self._array = array

    def detach(self):
        return self

    cpu = detach

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")

    def float(self):
        return self._array


def exact(case):
    return case.profile == "exact"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # vectors of overflows
@pytest.mark.parametrize(("chapter", "step"), [("experts", 5), ("dispatch", 4), ("numerics", 1)])
def test_the_law_and_another_order_conform(chapter, step):
    for case in cases(chapter)[::step]:
        assert_conforms(case, results(case))
        if exact(case):
            assert_conforms(case, results(case, Other))


def test_what_is_wrong_says_the_flags_and_the_place():
    case = next(c for c in cases("experts", call="expert_ffn") if c.profile == "exact")
    got = results(case)
    name = "hidden_rows"
    got[name] = got[name] + np.float32(1)
    said = rf"{case.id}, rounded: (?s:.*)hidden_rows is wrong(?s:.*)flag {case.flags[0]}: "
    with pytest.raises(AssertionError, match=said):
        assert_conforms(case.id, {name: got[name]})


def test_integers_are_equal_or_wrong():
    case = cases("dispatch", call="plan")[0]
    got = results(case)
    assert_conforms(case, {"row_slot": got["row_slot"].astype(np.int32)})
    with pytest.raises(AssertionError, match="row_slot is wrong"):
        assert_conforms(case, {"row_slot": got["row_slot"][::-1] + 1})


def test_names_and_shapes_that_do_not_fit_are_refused():
    case = cases("experts", call="expert_ffn")[0]
    with pytest.raises(ValueError, match=r"expected any of .*hidden_rows.*, got z"):
        assert_conforms(case, {"z": np.zeros(1)})
    with pytest.raises(ValueError, match="hidden_rows: expected shape"):
        assert_conforms(case, {"hidden_rows": np.zeros((1, 99))})
    with pytest.raises(ValueError, match="expected a dictionary"):
        assert_conforms(case, np.zeros(1))
    for bad in ("experts/9999", "nothing/1", ""):
        with pytest.raises(ValueError, match="CHAPTER/NUMBER"):
            find_case(bad)
    with pytest.raises(ValueError, match=r"call: expected one of .*, or None, got 'no such call'; choose one"):
        cases("experts", call="no such call")
    with pytest.raises(ValueError, match=r"one that chapter experts has with invalid=False \(.*\), got loss; choose"):
        cases("experts", call="loss")


def test_invalid_cases_stand_apart():
    assert all(case.refused for case in cases(invalid=True))
    assert not any(case.refused for case in cases("routing"))


def test_a_bundle_is_a_case(tmp_path):
    case = GoldenCase(plain_config(), 16)
    write_bundle(tmp_path / "b", case.config, case.num, refmoe.SPEC_VERSION, "tiny", 16, case.rows)
    arrays = case.of()
    assert_conforms(tmp_path / "b", arrays)
    assert_conforms(str(tmp_path / "b"), arrays["y"])
    with pytest.raises(AssertionError, match=r"first: y .* is wrong"):
        assert_conforms(tmp_path / "b", {"y": arrays["y"] * np.float32(1.5)})
    with pytest.raises(ValueError, match="rename it"):
        assert_conforms(tmp_path / "b", {"y": arrays["y"], "z": arrays["y"]})


# --- anybody's arrays ------------------------------------------------------------------------------------------------


def test_arrays_of_any_library_are_read():
    plain = np.array([[1.5, -2.0]], np.float32)
    for array, dtype in [(plain, "F32"), (Dlpack(plain), "F32"), (Torch(plain), "BF16"), (plain.tolist(), "F64"),
                         (plain.astype(np.float16), "F16")]:  # fmt: skip
        read = read_array("y", array)
        assert (read.values == plain).all()
        assert read.dtype == dtype
    assert read_array("i", Dlpack(np.arange(3, dtype=np.int32))).dtype == "I64"
    for bad in (object(), np.array(["a"]), np.array([1j])):
        with pytest.raises(TypeError, match=r"^y: expected"):
            read_array("y", bad)


def test_ml_dtypes_are_read():
    read = read_array("y", np.array([1.5, -2.0], ml_dtypes.bfloat16))
    assert (read.values.tolist(), read.dtype) == ([1.5, -2.0], "BF16")


# --- the plugin ------------------------------------------------------------------------------------------------------


def test_the_plugin_runs_a_test_once_a_case(pytester):
    pytester.makepyfile(
        """
        import pytest
        from refmoe.testing import assert_conforms
        from refmoe.testing.vectors import results

        @pytest.mark.refmoe(chapter="dispatch", call="rows")
        def test_kernel(refmoe_case):
            assert_conforms(refmoe_case, results(refmoe_case))

        @pytest.mark.refmoe(chapter="conformance", call="loss")
        def test_losses(refmoe_case):
            assert refmoe_case.id.startswith("conformance/") and refmoe_case.kind == "rounded"
            assert_conforms(refmoe_case.id, results(refmoe_case))
        """
    )
    outcome = pytester.runpytest_inprocess("-p", "refmoe.testing.plugin", "-p", "no:cacheprovider", "-q")
    outcome.assert_outcomes(passed=len(cases("dispatch", call="rows")) + len(cases("conformance", call="loss")))
