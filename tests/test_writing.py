"""Files that commands write: whole or not at all, with the mode of an ordinary file, and nothing left beside them."""

import os
import stat

import pytest

from refmoe.__main__ import main
from refmoe.writing import whole, write_whole


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_has_the_mode_of_open(umask, tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "new", "text")
    assert mode(tmp_path / "new") == mode(tmp_path / "plain") == 0o666 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_what_commands_write_has_it_too(umask, tmp_path, capsys):
    out = tmp_path / "seen"
    (tmp_path / "text").write_text("a text")
    words = ["route", "--preset", "mixtral-8x7b", "--text", str(tmp_path / "text")]
    assert main([*words, "--json", f"{out}.json", "--plot", f"{out}.png"]) == 0
    assert main(["lab", "run", "E10", "--seeds", "1", "--quick", "--jobs", "1", "--out", str(tmp_path / "lab")]) == 0
    assert main(["lab", "report", "--runs", str(tmp_path / "lab")]) == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10 and {mode(path) for path in files} == {0o666 & ~umask}


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert mode(tmp_path / "file") == 0o640


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "text")
    assert os.read(end, 9) == b"text" and (tmp_path / "pipe").is_fifo()
    os.close(end)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_ends_the_work_leaves_the_file_of_before(error, tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(error), whole(tmp_path / "file") as partial:
        partial.write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("words", [
    ["compare", "no-bundle", "no-file", "--html"],
    ["route", "--preset", "mixtral-8x7b", "--text", "no-file", "--json"],
    ["bench", "--quick", "--json"],
])  # fmt: skip
def test_a_folder_that_is_missing_is_said_before_anything_is_read(words, tmp_path, capsys):
    assert main([*words, str(tmp_path / "no" / "file")]) == 2
    told = capsys.readouterr().err
    assert "expected a file in a folder that exists" in told and told.count("\n") == 1
