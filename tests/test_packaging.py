"""How refmoe is built, installed, run and tested: each kind of install in an environment of its own, and the commands.

Nothing is fetched: pip builds with the setuptools and cffi of the environment that runs the tests, and the new
environments see its packages through a .pth file.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import refmoe
from refmoe import info
from refmoe.models import names

PRESETS = len(names())
ROOT = Path(__file__).parent.parent
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input")
IN_PLACE = ("--no-build-isolation", "--no-deps", "--no-index")


def run(*command, cwd, **env):
    """What the command printed; a failure shows its errors too."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("REFMOE_", "PYTHON", "PIP_"))}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=clean | env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of what a clone holds: no environment, nothing built, so that nothing stale can be picked up."""
    copy = tmp_path_factory.mktemp("clone") / "refmoe"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__", "*.so", "_kernels.*")
    shutil.copytree(ROOT, copy, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def sdist(tree):
    made = run(sys.executable, "-c", BACKEND, "build_sdist", cwd=tree).split()[-1]
    return tree / "dist" / made


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel built from the unpacked sdist, so that a file the sdist forgot is missed."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    made = run(sys.executable, "-c", BACKEND, "build_wheel", cwd=source, REFMOE_REQUIRE_C="1").split()[-1]
    return source / "dist" / made


BACKEND = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])("dist"))
"""


def environment(folder):
    """The Python of a new virtual environment that sees the packages of this one, but not refmoe itself."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python, *what, cwd, **env):
    """pip of this environment installs into the other one."""
    return run(sys.executable, *PIP, "--python", python, "install", *IN_PLACE, *what, cwd=cwd, **env)


# Everything an installed package must do, in one line of output: where it is, the engine, a preset, a result's bits.
USE = """
import hashlib, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import refmoe
    num = refmoe.Numerics()
    refmoe.Numerics()
from refmoe.recipes import generate
config = refmoe.load_preset("qwen1.5-moe-a2.7b", scale="minimal")
x = generate("x", (5, config.hidden_size), 1)
y = refmoe.moe_forward(x, refmoe.init_params(config), config, num).y
print(refmoe.__file__, num.engine.name, len(refmoe.models.names()), len(said), hashlib.sha256(y.tobytes()).hexdigest())
"""


def use(python, cwd, **env):
    """(path of the package, engine, presets, warnings, digest) as the installed package gives them."""
    path, engine, presets, said, digest = run(python, "-c", USE, cwd=cwd, **env).split()
    return Path(path), engine, int(presets), int(said), digest


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """The bits that every install must give: those of the tree under test, on NumPy."""
    return use(sys.executable, ROOT, REFMOE_BACKEND="numpy")[4]


def test_the_list_of_packages_is_the_tree():
    folders = {p.parent for p in (ROOT / "refmoe").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(LISTED["packages"]) == names | {"refmoe._spec"}


def test_the_version_is_stated_once():
    assert LISTED["dynamic"]["version"] == {"attr": "refmoe.__version__"}
    assert f"## {refmoe.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_sdist_holds_what_a_clone_holds(tree, sdist):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("refmoe", "csrc", "spec", "tests"):
        wanted = {str(p.relative_to(tree)) for p in (tree / folder).rglob("*") if p.is_file()}
        built = {name for name in wanted if "__pycache__" in name or name.endswith(".so")}
        assert wanted - built <= inside
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "setup.py"} <= inside


@pytest.mark.slow
def test_wheel(wheel, tmp_path, digest):
    assert "-abi3-" in wheel.name
    inside = zipfile.ZipFile(wheel).namelist()
    law = [str(p.relative_to(ROOT / "spec")) for p in (ROOT / "spec").rglob("*") if p.suffix in (".md", ".json")]
    assert {f"refmoe/_spec/{name}" for name in law} | {"refmoe/py.typed", "refmoe/_spec/chapters.py"} <= set(inside)
    assert not [name for name in inside if name.startswith(("tests/", "csrc/"))]
    python = environment(tmp_path / "env")
    install(python, wheel, cwd=tmp_path)
    path, engine, presets, said, bits = use(python, tmp_path)
    assert path.is_relative_to(tmp_path) and (engine, presets, said, bits) == ("c", PRESETS, 0, digest)
    assert use(python, tmp_path, REFMOE_BACKEND="numpy")[1:] == ("numpy", PRESETS, 0, digest)
    command = python.parent / "refmoe"
    assert "qwen3-30b-a3b" in run(command, "presets", cwd=tmp_path)


@pytest.mark.slow
def test_editable(tree, tmp_path, digest):
    python = environment(tmp_path / "env")
    install(python, "--editable", tree, cwd=tmp_path, REFMOE_REQUIRE_C="1")
    path, *rest = use(python, tmp_path)
    assert path == tree / "refmoe" / "__init__.py" and rest == ["c", PRESETS, 0, digest]


@pytest.mark.slow
def test_without_a_compiler_the_install_works_on_numpy_and_says_so_once(sdist, tmp_path, digest):
    python = environment(tmp_path / "env")
    install(python, sdist, cwd=tmp_path, CC="/bin/false")
    assert use(python, tmp_path)[1:] == ("numpy", PRESETS, 1, digest)
    refusal = "import refmoe\ntry:\n    refmoe.Numerics(backend='c')\nexcept ImportError as error:\n    print(error)"
    message = run(python, "-c", refusal, cwd=tmp_path)
    assert "refmoe._kernels" in message and "install a C compiler" in message
    report = run(python, "-c", "import refmoe; refmoe.show_config()", cwd=tmp_path)
    assert "numpy" in report and "install a C compiler" in report


@pytest.mark.slow
def test_a_compiler_can_be_required(sdist, tmp_path):
    python = environment(tmp_path / "env")
    with pytest.raises(AssertionError, match="false"):
        install(python, sdist, cwd=tmp_path, CC="/bin/false", REFMOE_REQUIRE_C="1")


# --- info ---------------------------------------------------------------------------------------------------------


def test_report_names_versions_backend_and_environment(monkeypatch, capsys):
    monkeypatch.setenv("REFMOE_BACKEND", "numpy")
    refmoe.show_config()
    text = capsys.readouterr().out
    assert text == info.config_report() + "\n"
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert lines["refmoe"] == [refmoe.__version__] and lines["SPEC_VERSION"] == [str(refmoe.SPEC_VERSION)]
    assert lines["in"] == ["use", "numpy"] and lines["why"] == ["REFMOE_BACKEND=numpy"]
    assert lines["REFMOE_BACKEND"] == ["numpy"] and {"portable", "avx2", "avx512"} <= set(lines)


def test_report_survives_a_wrong_environment(monkeypatch):
    monkeypatch.setenv("REFMOE_BACKEND", "fortran")
    assert "REFMOE_BACKEND" in info.config_report() and "none" in info.config_report()


# --- the commands, and NumPy alone --------------------------------------------------------------------------------


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split()) - {"help"}
    assert targets == set(re.findall(r'@echo "make ([\w-]+) ', text))


def test_ci_runs_the_readmes_test_command():
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert any(re.search(r"^make test\b", block, re.M) for block in blocks)
    assert re.search(r"^tests\(\) \{ make test ", (ROOT / ".ci/run").read_text(), re.M)


ALONE = """
import importlib.abc, sys, warnings
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "refmoe") or name == "refmoe._kernels":
            raise ImportError(f"{name} is behind the wall")
sys.meta_path.insert(0, Wall())
warnings.simplefilter("error")
import refmoe
before = set(sys.modules)
assert not {"refmoe.golden", "refmoe.models", "refmoe.info", "refmoe.check"} & before, "the roof is loaded lazily"
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as said:
    num = refmoe.Numerics()
    refmoe.Numerics()
assert len(said) == 1 and "behind the wall" in str(said[0].message), said
config = refmoe.load_preset("mixtral-8x7b", scale="minimal")
import numpy as np
x = np.ones((3, config.hidden_size), np.float32)
record = refmoe.moe_forward(x, refmoe.init_params(config), config, num)
assert num.engine.name == "numpy" and np.isfinite(record.y).all()
try:
    refmoe.Numerics(backend="c")
except ImportError as error:
    assert "behind the wall" in str(error) and "compiler" in str(error)
else:
    raise AssertionError("backend c without the module must be refused")
refmoe.show_config()
"""


def test_numpy_alone_is_enough():
    """With everything but NumPy and the standard library walled off: import, warn once, compute, report."""
    run = subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "behind the wall" in run.stdout and "numpy" in run.stdout


# --- the count of skipped tests -----------------------------------------------------------------------------------

SKIPPING = """
import pytest

@pytest.mark.skipif(True, reason="no such machine")
def test_a(): pass

def test_b(): pass
"""
WHOLE = "import pytest\npytest.skip('a whole file', allow_module_level=True)\n"


@pytest.mark.parametrize(
    ("listed", "code", "said"),
    [
        ("test_skipping.py::test_a  # no such machine\ntest_whole.py  # whole", 0, ""),
        ("test_whole.py  # whole", 1, "skipped but not in tests/skips.txt: test_skipping.py::test_a"),
        ("test_skipping.py::test_a  # no", 1, "skipped but not in tests/skips.txt: test_whole.py"),
        (
            "test_skipping.py::test_a  # no\ntest_whole.py  # whole\nx.py::test_c  # gone",
            1,
            "in tests/skips.txt but not skipped: x.py::test_c",
        ),
        ("test_skipping.py::test_a", 4, "expected `test id  # reason`"),
    ],
    ids=["agree", "one too many", "a file too many", "one too few", "no reason"],
)
@pytest.mark.parametrize("workers", [(), ("-p", "xdist.plugin", "-n", "2")], ids=["one process", "two workers"])
def test_skips_are_counted(tmp_path, listed, code, said, workers):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "skips.txt").write_text(listed + "\n")
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "test_whole.py").write_text(WHOLE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--check-skips",
        *workers,
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take seconds to load
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and said in done.stdout + done.stderr, done.stdout + done.stderr
