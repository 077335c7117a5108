"""Files that nobody vouches for: three containers, each refused in one line where it is not what it says."""

import io
import zipfile

import numpy as np
import pytest
from other_kernels import Case, plain_config

import refmoe
from refmoe.__main__ import main
from refmoe.compare.containers import open_tensor_file
from refmoe.compare.files import open_submission
from refmoe.golden import raw, write_bundle
from refmoe.golden.errors import BundleError
from refmoe.safetensors import write_tensors

ARRAYS = {"grads.params.w_up": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "plan.row_slot": np.arange(3)}
TENSORS = {"grads.params.w_up": ("F32", ARRAYS["grads.params.w_up"]), "plan.row_slot": ("I64", ARRAYS["plan.row_slot"])}


def written(kind, directory):
    """The path a submission is named by, and the files that it is."""
    if kind == "raw":
        raw.write(directory, TENSORS)
        return directory, [directory / raw.INDEX, directory / raw.TENSORS]
    path = directory / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, **ARRAYS)
    else:
        write_tensors(path, TENSORS)
    return path, [path]


def read(path, names=None):
    with open_submission(path, names) as mine:
        return {n: np.stack([m.values[e] for e in range(len(m.values))]) for n, m in mine.items()}


@pytest.mark.parametrize("kind", ["safetensors", "npz", "raw"])
def test_every_container_holds_the_same(kind, tmp_path):
    path, _ = written(kind, tmp_path)
    found = read(path)
    assert {n: a.tolist() for n, a in found.items()} == {n: a.tolist() for n, a in ARRAYS.items()}


@pytest.mark.parametrize("kind", ["npz", "raw"])
def test_no_truncation_and_no_altered_byte_does_more_than_refuse(kind, tmp_path):
    path, files = written(kind, tmp_path)
    refused = 0
    for file in files:
        whole = file.read_bytes()
        spoilt = [whole[:n] for n in range(0, len(whole), 11)]
        spoilt += [whole[:n] + bytes([whole[n] ^ (1 << n % 7)]) + whole[n + 1 :] for n in range(0, len(whole), 2)]
        for data in spoilt:
            file.write_bytes(data)
            try:
                made = read(path)
            except BundleError as error:
                assert error.code == 2 and "\n" not in str(error)
                refused += 1
            else:
                assert sum(a.nbytes for a in made.values()) <= 4 * len(whole)
        file.write_bytes(whole)
    assert refused > 50


def test_archives_that_would_grow_or_run_are_refused(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, y=np.zeros(100000, np.float32))
    with pytest.raises(BundleError, match="neither compressed nor encrypted"):
        read(path)
    np.savez(path, y=np.array([{}], object), allow_pickle=True)
    with pytest.raises(BundleError, match="little-endian numbers"):
        read(path)
    np.savez(path, y=np.zeros((3, 4), np.float32, order="F"))
    with pytest.raises(BundleError, match="C order"):
        read(path)


def test_members_that_claim_each_others_bytes_are_refused(tmp_path):
    """A bomb that needs no compression: many names for one member."""
    path, buffer = tmp_path / "mine.npz", io.BytesIO()
    np.save(buffer, np.zeros(4096, np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a0.npy", buffer.getvalue())
        first = archive.infolist()[0]
        for number in range(1, 9):
            other = zipfile.ZipInfo(f"a{number}.npy")
            fields = ("header_offset", "CRC", "compress_size", "file_size")
            for field in fields:
                setattr(other, field, getattr(first, field))
            archive.filelist.append(other)
        archive.NameToInfo = {info.filename: info for info in archive.filelist}
    with pytest.raises(BundleError):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("y F32 0 16 5", "takes 20 bytes, got 16"), ("y F32 0 -16 4", "expected a name"), ("y F31 0 16 4", "got 'F31'"),
     ("y F32 8 4000 1000", "truncated"), ("y F32", "expected a name"), ("y F32 0 16 4\ny F32 0 16 4", "twice"),
     ("y F32 0 96 24\nz F32 24 96 24", "overlap")],
)  # fmt: skip
def test_a_raw_index_that_is_wrong_is_told(line, message, tmp_path):
    (tmp_path / raw.INDEX).write_text(f"{raw.TITLE}\n{line}\n")
    (tmp_path / raw.TENSORS).write_bytes(bytes(120))
    with pytest.raises(BundleError, match=message):
        read(tmp_path)


def test_a_map_that_contradicts_the_file_is_refused(tmp_path):
    path, _ = written("safetensors", tmp_path)
    with pytest.raises(BundleError, match="'q': the map names it, the file lacks it"):
        read(path, {"q": "y"})
    with pytest.raises(BundleError, match=r"are both 'plan\.row_slot'"):
        read(path, {"grads.params.w_up": "plan.row_slot"})


@pytest.mark.parametrize("kind", ["npz", "raw"])
def test_the_command_reads_every_container(kind, tmp_path, capsys):
    case = Case(plain_config(), 8)
    write_bundle(tmp_path / "b", case.config, case.num, refmoe.SPEC_VERSION, "a case", 8, case.rows)
    y = case.of()["y"]
    if kind == "npz":
        np.savez(tmp_path / "mine.npz", y=y)
    else:
        raw.write(tmp_path, {"y": ("F32", y)})
    path = tmp_path / "mine.npz" if kind == "npz" else tmp_path
    assert main(["compare", str(tmp_path / "b"), str(path)]) == 0
    assert "1 passed" in capsys.readouterr().out
    with open_tensor_file(path) as reader:
        assert list(reader.entries) == ["y"]


@pytest.mark.parametrize(
    ("held", "got"),
    [("tensors.npz", "one with tensors.npz; name that file"), (raw.TENSORS, "one without tensors.txt; name the file"),
     ("tensors.safetensors", "one with tensors.safetensors; name that file"), (None, "one without tensors.txt; name")],
)  # fmt: skip
def test_a_directory_that_is_no_raw_one_is_told_what_to_name(held, got, tmp_path, capsys):
    """A bundle in another container, most of all."""
    mine = tmp_path / "mine"
    mine.mkdir()
    if held:
        (mine / held).write_bytes(b"")
    wanted = "expected a .safetensors or .npz file, or a directory with tensors.txt and tensors.raw, got"
    assert main(["compare", str(tmp_path / "none"), str(mine)]) == 2
    said = capsys.readouterr().err
    assert f"refmoe: {mine}: {wanted} {got}" in said and said.count("\n") == 1
