"""Chapter 7, users' own arrays: layouts, refusals, what is stored."""

import numpy as np
import pytest
import safetensors.numpy
from golden_case import check, contents, write

from refmoe.golden import storage
from refmoe.golden.arrays import house_layout, load_arrays
from refmoe.safetensors import open_tensors

# --- 7.7 users' own arrays --------------------------------------------------------------------------------------------


def own_arrays():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(-50, 50, shape).astype(np.float32) / 16  # noqa: E731
    return {
        "x": draw(5, 4),
        "w_gate": draw(4, 3, 4),
        "w_up": draw(4, 3, 4),
        "w_down": draw(4, 4, 3),
        "w_router": draw(4, 4),
    }


def test_own_arrays_are_stored_and_check(tmp_path):
    write(tmp_path / "b", arrays=own_arrays())
    with open_tensors(tmp_path / "b" / "tensors.safetensors") as reader:
        for name, array in own_arrays().items():
            assert np.array_equal(reader.codes(name if name == "x" else f"params.{name}"), array)
    checked = check(tmp_path / "b")
    assert checked.differences == []
    assert checked.manifest["inputs"]["x"] == {"source": "stored"}
    assert checked.manifest["inputs"]["d_y"]["source"] == "recipe"


def test_own_weights_are_stored_above_the_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SIZE_LIMIT", 10)
    write(tmp_path / "b", arrays={n: a for n, a in own_arrays().items() if n != "x"})
    with open_tensors(tmp_path / "b" / "tensors.safetensors") as reader:
        assert "params.w_gate" in reader.entries and "grads.params.w_gate.sample" in reader.entries
    assert check(tmp_path / "b").differences == []


@pytest.mark.parametrize("name", ["x", "d_y"])
def test_own_tokens_above_the_limit_are_stored(tmp_path, monkeypatch, name):
    monkeypatch.setattr(storage, "SIZE_LIMIT", 10)
    write(tmp_path / "b", arrays={name: own_arrays()["x"]})
    assert check(tmp_path / "b").differences == []


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("gate_up", ["separate", "concatenated", "interleaved"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_layout_is_converted_at_the_door(tmp_path, layout, gate_up, kind):
    arrays = own_arrays()
    theirs = dict(arrays)
    if gate_up != "separate":
        gate, up = theirs.pop("w_gate"), theirs.pop("w_up")
        theirs["w_gate_up"] = (
            np.concatenate([gate, up], 1) if gate_up == "concatenated" else np.stack([gate, up], 2).reshape(4, 6, 4)
        )
    if layout == "in_out":
        theirs = {n: np.ascontiguousarray(a.transpose(0, 2, 1)) if a.ndim == 3 else a for n, a in theirs.items()}
    path = tmp_path / f"theirs.{kind}"
    np.savez(path, **theirs) if kind == "npz" else safetensors.numpy.save_file(theirs, path)
    write(tmp_path / "b", arrays=house_layout(load_arrays(path), layout, gate_up))
    write(tmp_path / "a", arrays=arrays)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


REFUSED_ARRAYS = {
    "an unknown name": ({"w_gat": np.zeros(3, np.float32)}, ValueError, "got 'w_gat'"),
    "a wrong shape": ({"x": np.zeros((5, 3), np.float32)}, ValueError, "x: expected shape"),
    "one axis": ({"x": np.zeros(5, np.float32)}, ValueError, "x: expected shape"),
    "a wrong dtype": ({"x": np.zeros((5, 4))}, TypeError, "x: expected native float32"),
    "a wrong weight": ({"w_up": np.zeros((4, 4, 3), np.float32)}, ValueError, r"params\.w_up: expected shape"),
    "a wrong mask": ({"token_mask": np.ones(5, np.int64)}, TypeError, "token_mask"),
    "a short mask": ({"token_mask": np.ones(4, bool)}, ValueError, "token_mask"),
    "a NaN token": ({"x": np.full((5, 4), np.nan, np.float32)}, ValueError, "logits: expected finite"),
}


@pytest.mark.parametrize("name", REFUSED_ARRAYS)
def test_wrong_arrays_are_refused_and_nothing_is_written(name, tmp_path):
    arrays, error, message = REFUSED_ARRAYS[name]
    with pytest.raises(error, match=message):
        write(tmp_path / "b", arrays=arrays)
    assert list(tmp_path.iterdir()) == []


def test_values_the_store_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bf16"):
        write(tmp_path / "b", arrays={"x": np.full((5, 4), 1 + 2**-10, np.float32)}, store="bf16")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], object))
    np.savez(tmp_path / "big.npz", x=np.zeros(3, ">f4"))
    np.savez(tmp_path / "text.npz", x=np.array(["a"]))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nonsense")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    (tmp_path / "x.npy").write_bytes(b"")
    expected = {
        "pickled.npz": "allow_pickle",
        "big.npz": "native byte order",
        "text.npz": "expected floats",
        "broken.npz": "readable npz",
        "broken.safetensors": "claims",
        "x.npy": "ending in",
        "absent.npz": "absent",
        "absent.safetensors": "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_arrays(tmp_path / name)
        assert "--inputs" in str(caught.value)


def zeros(*shape):
    return np.zeros(shape, np.float32)


IMPOSSIBLE = {
    "--gate-up": ({"w_gate_up": zeros(4, 6, 4)}, {}),
    "even": ({"w_gate_up": zeros(4, 5, 4)}, {"gate_up": "interleaved"}),
    "w_gate_up: expected 3 axes": ({"w_gate_up": zeros(6, 4)}, {"gate_up": "interleaved"}),
    "w_up: expected 3 axes": ({"w_up": zeros(3, 4)}, {"layout": "in_out"}),
    "w_up: expected once": ({"w_gate_up": zeros(4, 6, 4), "w_up": zeros(4, 3, 4)}, {"gate_up": "concatenated"}),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_layouts_that_cannot_be_are_refused(message):
    arrays, options = IMPOSSIBLE[message]
    with pytest.raises(ValueError, match=message):
        house_layout(arrays, **options)


def test_biases_split_like_weights():
    joined = {
        "b_gate_up": np.arange(12, dtype=np.float32).reshape(2, 6),
        "shared.w_gate_up": np.arange(8, dtype=np.float32).reshape(1, 4, 2),
    }
    split = house_layout(joined, gate_up="interleaved")
    assert split["b_gate"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert split["shared.w_up"].tolist() == [[[2, 3], [6, 7]]]
    assert set(split) == {"b_gate", "b_up", "shared.w_gate", "shared.w_up"}
