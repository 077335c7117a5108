"""Chapter 7, the parts: recipes, the container, digests, samples."""

import hashlib
import re
import subprocess

import numpy as np
import pytest
import safetensors.numpy
from golden_case import ROOT, container, entry, write

from refmoe.formats import FORMATS
from refmoe.golden import BundleError, digests
from refmoe.golden.weights import RecipeWeights, maker_pool
from refmoe.recipes import RECIPES, generate
from refmoe.safetensors import DTYPES, MAX_HEADER, canonical_header, open_tensors, write_tensors

CHAPTER = (ROOT / "spec" / "7-golden.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden") / "bundle"
    write(directory)
    return directory


# --- 7.2 recipes ------------------------------------------------------------------------------------------------------


def first_values():
    """Rows of the chapter's table of first values."""
    pattern = r"^\| `(\w+)` \| `([\w.]+)` \| (\d+) \| (-?\d+) \| `(\S+)` \| `(\S+)` \| `(\S+)` \| `(\S+)` \|$"
    return re.findall(pattern, CHAPTER, re.MULTILINE)


@pytest.mark.parametrize("row", first_values(), ids=lambda row: "-".join(row[:3]))
def test_the_chapters_first_values_are_the_librarys(row):
    recipe, name, seed, exponent, *values = row
    assert [float.fromhex(v) for v in values] == generate(name, (4,), int(seed), recipe, int(exponent)).tolist()


def test_the_table_has_every_recipe():
    assert {row[0] for row in first_values()} == set(RECIPES)


def test_the_chapters_python_makes_the_bell():
    namespace = {}
    exec(re.search(r"^```python\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)[1], namespace)
    values = [namespace["bell"](namespace["word"](7, "w_gate", i)) for i in range(100)]
    assert values == generate("w_gate", (100,), 7).tolist()


def test_the_chapters_c_makes_the_bell(tmp_path):
    source = re.search(r"^```c\n(.*?)^```$", CHAPTER, re.MULTILINE | re.DOTALL)[1]
    body = 'for (int i = 0; i < 100; i++) printf("%a\\n", bell(key(7, "w_gate"), i, -6));'
    main = f"#include <stdio.h>\nint main(void) {{ {body} }}\n"
    (tmp_path / "bell.c").write_text(source + main)
    subprocess.run(["cc", "-std=c11", "-O2", "bell.c", "-o", "bell", "-lm"], cwd=tmp_path, check=True)
    lines = subprocess.run([tmp_path / "bell"], check=True, capture_output=True, text=True).stdout.split()
    assert [float.fromhex(line) for line in lines] == generate("w_gate", (100,), 7, "bell", -6).tolist()


def test_lazy_weights_are_the_recipes_expert_by_expert():
    row = {"name": "w_up", "seed": 3, "recipe": "wide", "exponent": -1}
    whole = generate("w_up", (9, 4, 5), 3, "wide", -1)
    with maker_pool() as pool:
        lazy = RecipeWeights(row, (9, 4, 5), np.float32, "F32", pool)
        for e in (8, 0, 4, 4, 1):
            assert np.array_equal(lazy(e), whole[e])
            assert not lazy(e).flags.writeable
        assert lazy.digest() == digests.tensor_digest(whole, by_expert=True)


def test_lazy_weights_stay_within_their_room(monkeypatch):
    monkeypatch.setattr("refmoe.golden.weights.CACHE_BYTES", 1)
    row = {"name": "w_up", "seed": 3, "recipe": "bell", "exponent": 0}
    whole = generate("w_up", (20, 2, 2), 3)
    with maker_pool() as pool:
        lazy = RecipeWeights(row, (20, 2, 2), np.float32, "F32", pool)
        for e in (*range(20), *range(20)):
            assert np.array_equal(lazy(e), whole[e])
            assert len(lazy._made) <= 5
        assert lazy.digest() == digests.tensor_digest(whole, by_expert=True)


# --- 7.3 the container ------------------------------------------------------------------------------------------------


def sample_tensors():
    return {
        "b": ("F32", np.array([[1.5, -0.0]], "<f4")),
        "a": ("I64", np.array([3, -1], "<i8")),
        "empty": ("F64", np.zeros((0, 7))),
        "c": ("BOOL", np.array([True, False])),
        "scalar": ("BF16", np.array(0x3F80, "<u2")),
    }


def test_the_writer_has_one_output(tmp_path):
    write_tensors(tmp_path / "one", sample_tensors())
    write_tensors(tmp_path / "two", dict(reversed(sample_tensors().items())))
    raw = (tmp_path / "one").read_bytes()
    assert raw == (tmp_path / "two").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length]
    assert length % 8 == 0
    assert header.rstrip(b" ").startswith(
        b'{"a":{"data_offsets":[0,16],"dtype":"I64","shape":[2]},"b":{"data_offsets":[16,24]'
    )
    payload = np.array([3, -1], "<i8").tobytes() + np.array([1.5, -0.0], "<f4").tobytes() + b"\x01\x00" + b"\x80\x3f"
    assert raw[8 + length :] == payload


def test_the_official_reader_reads_it(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {n: v for n, v in sample_tensors().items() if v[0] != "BF16"})
    found = safetensors.numpy.load_file(tmp_path / "t.safetensors")
    assert set(found) == {"a", "b", "c", "empty"}
    for name, array in found.items():
        assert array.tobytes() == sample_tensors()[name][1].tobytes()
        assert array.shape == sample_tensors()[name][1].shape


def test_the_official_reader_reads_a_bundle(made):
    found = safetensors.numpy.load_file(made / "tensors.safetensors")
    with open_tensors(made / "tensors.safetensors") as reader:
        assert set(found) == set(reader.entries)
        for name, array in found.items():
            assert np.array_equal(array.view(np.uint8), reader.codes(name).view(np.uint8))


def test_the_official_writer_is_read(tmp_path):
    arrays = {"z": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(3), "h": np.ones(3, np.float16)}
    safetensors.numpy.save_file(arrays, tmp_path / "t.safetensors", metadata={"format": "np"})
    with open_tensors(tmp_path / "t.safetensors") as reader:
        assert set(reader.entries) == set(arrays)
        for name, array in arrays.items():
            assert np.array_equal(reader.codes(name), array)
        assert reader.codes("z", 1).tolist() == [3.0, 4.0, 5.0]


def test_the_writer_converts_nothing(tmp_path):
    with pytest.raises(TypeError, match="x: expected elements of float32 for F32, got float64"):
        write_tensors(tmp_path / "t", {"x": ("F32", np.zeros(3))})


BROKEN = {
    "a gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "gap"),
    "a gap at the front": ({"a": entry(4, 8, [1])}, 8, "gap"),
    "an overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "overlaps"),
    "an empty tensor in the air": ({"a": entry(0, 4, [1]), "b": entry(8, 8, [0])}, 4, "gap"),
    "an empty tensor inside another": ({"a": entry(0, 8, [2]), "b": entry(4, 4, [0])}, 8, "starts at byte"),
    "too little data": ({"a": entry(0, 8, [2])}, 7, "truncated"),
    "too much data": ({"a": entry(0, 8, [2])}, 9, "too long"),
    "a size that is not the shape's": ({"a": entry(0, 8, [3])}, 8, "takes 12 bytes"),
    "an unknown dtype": ({"a": entry(0, 8, [2], "F31")}, 8, "unknown dtype"),
    "a dtype that is no string": ({"a": entry(0, 8, [2], ["F32"])}, 8, "unknown dtype"),
    "a negative size": ({"a": entry(0, 8, [-2])}, 8, "list of"),
    "a float for a size": ({"a": entry(0, 8, [2.0])}, 8, "list of"),
    "a boolean for a size": ({"a": entry(0, 4, [True])}, 4, "list of"),
    "nine axes": ({"a": entry(0, 4, [1] * 9)}, 4, "list of"),
    "reversed offsets": ({"a": entry(8, 0, [2])}, 8, "takes 8 bytes"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, 4, "two offsets"),
    "a huge size": ({"a": entry(0, 4, [1 << 80])}, 4, "list of"),
    "a product that is huge": ({"a": entry(0, 4, [1 << 61, 1 << 61])}, 4, "takes"),
    "a field too many": ({"a": entry(0, 4, [1]) | {"note": ""}}, 4, "not {dtype"),
    "an entry that is a number": ({"a": 3}, 0, "not {dtype"),
    "metadata that is no table of strings": ({"__metadata__": {"a": 1}}, 0, "__metadata__"),
    "a list for a header": (b"[]", 0, "not a JSON object"),
    "no JSON": (b"{'a': 1}", 0, "not the JSON"),
    "a repeated key": (b'{"a":1,"a":1}', 0, "twice"),
    "NaN": (b'{"a":NaN}', 0, "NaN"),
    "bad UTF-8": (b'{"\xff":1}', 0, "not the JSON"),
    "deep nesting": (b"[" * 100_000, 0, "nested too deep"),
    "a number of 10,000 digits": (b'{"a":' + b"9" * 10_000 + b"}", 0, "not the JSON"),
    "nothing": (b"", 0, "not the JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_container_is_refused(name, tmp_path):
    header, size, message = BROKEN[name]
    path = container(tmp_path / "t.safetensors", header, bytes(size))
    with pytest.raises(BundleError, match=message) as caught, open_tensors(path):
        pass
    assert caught.value.code == 1
    assert "t.safetensors" in str(caught.value)


def test_a_length_beyond_the_file_or_the_cap_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    for raw, message in ((b"\xff" * 8, "claims 18446744073709551615 bytes"), (b"\x00" * 7, "truncated")):
        path.write_bytes(raw)
        with pytest.raises(BundleError, match=message), open_tensors(path):
            pass
    container(path, b" " * (MAX_HEADER + 1))
    with pytest.raises(BundleError, match="more than the"), open_tensors(path):
        pass


def test_a_boolean_is_0_or_1(tmp_path):
    path = container(tmp_path / "t.safetensors", {"mask": entry(0, 2, [2], "BOOL")}, b"\x01\x02")
    with open_tensors(path) as reader, pytest.raises(BundleError, match="'mask': a BOOL element"):
        reader.codes("mask")


def test_the_header_of_no_tensors_is_an_object():
    assert canonical_header({}) == b"{}      "


# --- 7.5, 7.6 digests and samples -------------------------------------------------------------------------------------


def test_the_digest_of_an_expert_tensor_is_that_of_its_experts_digests():
    tensor = np.arange(24, dtype="<f4").reshape(3, 2, 4)
    parts = b"".join(hashlib.sha256(part.tobytes()).digest() for part in tensor)
    assert digests.tensor_digest(tensor, by_expert=True) == hashlib.sha256(parts).hexdigest()
    assert digests.tensor_digest(tensor) == hashlib.sha256(tensor.tobytes()).hexdigest()


@pytest.mark.parametrize("store", ["float32", "bf16", "fp16", "float64"])
def test_a_sink_sees_what_the_whole_tensor_shows(store):
    row = FORMATS[store]
    whole = generate("d", (5, 700, 11), 1, "bf16").astype(row.carrier)
    codes = digests.to_codes(whole, row.safetensors)
    sink = digests.DigestSink(whole.shape, row.safetensors)
    for e in (3, 0, 4, 1, 2):
        sink.take(e, whole[e])
    digest, kept = sink.result()
    assert digest == digests.tensor_digest(codes, by_expert=True)
    stride = digests.sample_stride(whole.shape)
    assert stride == 11
    assert np.array_equal(kept, codes.reshape(-1)[::stride])
    assert np.array_equal(digests.from_codes(codes, row.safetensors), whole)
    assert codes.dtype == DTYPES[row.safetensors]


def test_a_sink_takes_each_expert_once_and_misses_none():
    sink = digests.DigestSink((2, 3), "F32")
    sink.take(1, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="expert 1: expected once"):
        sink.take(1, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="expert 0 never came"):
        sink.result()


@pytest.mark.parametrize(
    ("count", "stride"), [(0, 1), (1, 1), (4096, 1), (4097, 3), (8192, 3), (12288, 3), (12289, 5), (201326592, 49153)]
)
def test_the_stride_is_odd_and_leaves_few_elements(count, stride):
    assert digests.sample_stride((count,)) == stride
    assert len(range(0, count, stride)) <= digests.SAMPLE_COUNT
