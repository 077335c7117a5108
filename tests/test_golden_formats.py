"""Chapter 7.3, the containers: one manifest, three ways to hold its tensors, each with one possible form."""

import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from golden_case import check, contents, refused, tiny, write

import refmoe
from refmoe.__main__ import main
from refmoe.golden import BundleError, npz, raw
from refmoe.golden.containers import CONTAINERS
from refmoe.golden.verify import open_bundle
from refmoe.safetensors import DTYPES, canonical_header, open_tensors
from refmoe.testing import assert_conforms

OTHERS = ["npz", "raw"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> bundle of the tiny case; bf16, so that a type without a NumPy type is among them."""
    room = tmp_path_factory.mktemp("formats")
    for name in CONTAINERS:
        write(room / name, container=name, store="bf16")
    return {name: room / name for name in CONTAINERS}


def tensors_of(directory):
    with open_bundle(directory, refmoe.SPEC_VERSION) as (_, reader):
        return {name: (e.dtype, e.shape, reader.codes(name).tobytes()) for name, e in reader.entries.items()}


def test_the_manifest_does_not_depend_on_the_container(made):
    assert len({(directory / "manifest.json").read_bytes() for directory in made.values()}) == 1


@pytest.mark.parametrize("name", CONTAINERS)
def test_one_reader_gives_the_same_tensors_of_each(made, name):
    assert tensors_of(made[name]) == tensors_of(made["safetensors"])
    assert {path.name for path in made[name].iterdir()} == {"manifest.json", *CONTAINERS[name].files}


@pytest.mark.parametrize("name", OTHERS)
def test_every_container_is_checked_and_made_again_with_the_same_bytes(made, tmp_path, name):
    assert check(made[name]).differences == []
    write(tmp_path / "again", container=name, store="bf16")
    assert contents(tmp_path / "again") == contents(made[name])


@pytest.mark.parametrize("name", OTHERS)
def test_a_bundle_in_another_container_is_a_case_to_test_against(tmp_path, name):
    write(tmp_path / "b", container=name)
    with open_bundle(tmp_path / "b", refmoe.SPEC_VERSION) as (_, reader):
        y = reader.codes("y")
    assert_conforms(tmp_path / "b", {"y": y})
    with pytest.raises(AssertionError, match=r"wrong"):
        assert_conforms(tmp_path / "b", {"y": y * np.float32(1.5)})


def test_numpy_reads_the_npz(made):
    want = tensors_of(made["npz"])
    with np.load(made["npz"] / "tensors.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(want)
        for name in archive.files:
            dtype, shape, data = want[name]
            assert (archive[name].dtype, archive[name].shape, archive[name].tobytes()) == (DTYPES[dtype], shape, data)
    with zipfile.ZipFile(made["npz"] / "tensors.npz") as archive:
        assert archive.testzip() is None
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (1, 2, 3)])
def test_an_npy_header_is_read_by_numpy(shape):
    header = npz.npy_header("F32", shape)
    assert len(header) % 64 == 0
    data = np.zeros(shape, "<f4").tobytes()
    assert np.load(io.BytesIO(header + data), allow_pickle=False).shape == shape


def test_the_raw_files_are_the_buffer_and_a_text(made):
    buffer = (made["safetensors"] / "tensors.safetensors").read_bytes()
    with open_tensors(made["safetensors"] / "tensors.safetensors") as reader:
        assert (made["raw"] / "tensors.raw").read_bytes() == buffer[reader.start :]
        entries = reader.entries
    lines = (made["raw"] / "tensors.txt").read_text().splitlines()
    assert lines[0] == raw.TITLE
    found = {}
    for name, dtype, begin, size, *sizes in (line.split(" ") for line in lines[1:]):
        found[name] = (dtype, tuple(map(int, sizes)), int(begin), int(begin) + int(size))
    assert found == {name: tuple(entry) for name, entry in sorted(entries.items())}
    assert list(found) == sorted(found)


# --- what is refused --------------------------------------------------------------------------------------------------


def spoilt(tmp_path, source, file, data):
    """A copy of a bundle with one file replaced."""
    room = tmp_path / "spoilt"
    room.mkdir(exist_ok=True)
    for path in source.iterdir():
        (room / path.name).write_bytes(data if path.name == file else path.read_bytes())
    return room


@pytest.mark.parametrize(("name", "file"), [("npz", "tensors.npz"), ("raw", "tensors.raw"), ("raw", "tensors.txt")])
def test_truncation_and_altered_bytes_are_found(made, tmp_path, name, file):
    """Each byte of the forms, some of the payload: `make faults` goes on from here."""
    data, generator = (made[name] / file).read_bytes(), random.Random(7)
    copy = spoilt(tmp_path, made[name], file, data)
    for place in generator.sample(range(len(data)), 60):
        (copy / file).write_bytes(data[:place])
        assert file in refused(copy)
        (copy / file).write_bytes(data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :])
        assert file in refused(copy)
    (copy / file).write_bytes(data + b"\0")
    assert file in refused(copy)


def test_a_compressed_member_is_not_read(made, tmp_path):
    """The bomb's way in: a member whose size is only known when it has been inflated."""
    layout = {name: (dtype, shape) for name, (dtype, shape, _) in tensors_of(made["npz"]).items()}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (dtype, shape) in sorted(layout.items()):
            archive.writestr(f"{name}.npy", npz.npy_header(dtype, shape) + bytes(1 << 20))
    data = packed.getvalue()
    assert "tensors.npz: " in refused(spoilt(tmp_path, made["npz"], "tensors.npz", data))
    size = (made["npz"] / "tensors.npz").stat().st_size
    same_size = data[:size] + bytes(max(0, size - len(data)))
    assert "not the canonical one, stored and uncompressed" in refused(
        spoilt(tmp_path, made["npz"], "tensors.npz", same_size)
    )


def test_a_checksum_changed_in_both_places_is_found(made, tmp_path):
    data = bytearray((made["npz"] / "tensors.npz").read_bytes())
    crc = bytes(data[14:18])
    at = data.index(b"PK\x01\x02") + 16
    assert data[at : at + 4] == crc
    data[14] ^= 1
    data[at] ^= 1
    assert "do not have the checksum" in refused(spoilt(tmp_path, made["npz"], "tensors.npz", bytes(data)))


def test_two_containers_or_none_are_refused(made, tmp_path):
    room = spoilt(tmp_path, made["raw"], "", b"")
    (room / "tensors.npz").write_bytes(b"")
    assert "holds tensors.npz and tensors.raw, and one of them is enough" in refused(room)
    (room / "tensors.npz").unlink()
    (room / "tensors.txt").unlink()
    assert "tensors.txt: cannot be read" in refused(room, code=2)
    (room / "tensors.raw").unlink()
    assert "cannot be read" in refused(room, code=2)


def test_more_than_an_npz_can_say_is_refused_before_anything_is_written(tmp_path):
    class Huge:
        shape, dtype = (1 << 30, 8), np.dtype("<f4")

    with pytest.raises(ValueError, match=r"^--format npz: expected at most 4 GiB of tensors, got \d+ bytes; use safe"):
        npz.write(tmp_path, {"x": ("F32", Huge())})
    opened = npz.opened(tmp_path, {"x": ("F32", (1 << 61, 8))})
    with pytest.raises(BundleError, match="more than an npz file can hold"), opened:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OTHERS)
def test_no_tensors_at_all_is_a_file_too(tmp_path, name):
    CONTAINERS[name].write(tmp_path, {})
    with CONTAINERS[name].opened(tmp_path, {}) as reader:
        assert reader.entries == {}
    assert canonical_header({})  # and so it is for safetensors


@pytest.mark.parametrize("name", OTHERS)
def test_the_command_line_writes_and_checks_them(tmp_path, capsys, name):
    (tmp_path / "c.json").write_text(json.dumps(tiny().to_dict()))
    out = tmp_path / "b"
    asked = ["--config", tmp_path / "c.json", "--tokens", 3, "--format", name, "--backend", "numpy", "--out", out]
    assert main(["golden", *map(str, asked)]) == 0
    assert main(["check", str(out), "--backend", "numpy"]) == 0
    path = Path(out / CONTAINERS[name].files[0])
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    capsys.readouterr()
    assert main(["check", str(out), "--backend", "numpy"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
