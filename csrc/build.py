"""From csrc/ to the compiled module refmoe._kernels.

setup.py reads `ffibuilder` from here (cffi_modules). In a checkout, `python csrc/build.py` compiles the module into
refmoe/ and does nothing when it is newer than every source; `--force` compiles anyway.
"""

import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path("csrc").resolve()


def shared_list(name):
    """The words of a list of flags.mk."""
    text = (HERE / "flags.mk").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.search(rf"^{name} := (.*)$", text, re.M)[1].split()


SOURCES, MEASURES, ARITHMETIC, OTHER = map(shared_list, ("SOURCES", "MEASURES", "ARITHMETIC", "OTHER"))
OFFERED = "kernels", "formulas", "sums", "written", "experts", "attention", "dispatch", "limits"  # by the module
HEADERS = [f"refmoe_{name}.h" for name in OFFERED]


def declarations():
    """The parts of the headers between the two cffi marks."""
    texts = [(HERE / name).read_text(encoding="utf-8") for name in HEADERS]
    return "".join(text.split("/* cffi: begin */")[1].split("/* cffi: end */")[0] for text in texts)


def _links(compiler, flags):
    """Whether a library that asks OpenMP for a thread number compiles and links with these flags."""
    program = "#include <omp.h>\nint probe(void) { return omp_get_thread_num(); }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        try:
            objects = compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            compiler.link_shared_object(objects, str(Path(folder, "probe.so")), extra_postargs=flags)
        except Exception:  # every compiler class has its own errors; any of them means no
            return False
    return True


def openmp_flags():
    """["-fopenmp"] if compiler and linker take it, else [] and one line of warning: calls will be serial."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.sysconfig import customize_compiler

    compiler = new_compiler()
    customize_compiler(compiler)
    flags = ["-fopenmp"]
    if _links(compiler, flags):
        return flags
    print("refmoe: no OpenMP here; the kernels will use one thread", file=sys.stderr)
    return []


def make_builder(folder):
    """The cffi builder for sources named relative to `folder` (setup.py wants relative names, cffi itself absolute)."""
    openmp = openmp_flags()
    required = os.environ.get("REFMOE_REQUIRE_C") == "1"
    builder = FFI()
    builder.cdef(declarations())
    builder.set_source(
        "refmoe._kernels", "".join(f'#include "{name}"\n' for name in HEADERS),
        sources=[f"{folder}/{name}" for name in SOURCES + MEASURES],
        include_dirs=[str(folder)], depends=[f"{folder}/{name}" for name in _headers()], py_limited_api=True,
        extra_compile_args=ARITHMETIC + OTHER + openmp, extra_link_args=["-pthread", *openmp], optional=not required)
    return builder


def _headers():
    return [*sorted(path.name for path in HERE.glob("*.h")), "flags.mk"]


def _is_current(target):
    inputs = [*HERE.glob("*.c"), *HERE.glob("*.h"), HERE / "flags.mk", Path(__file__)]
    return target.exists() and target.stat().st_mtime >= max(path.stat().st_mtime for path in inputs)


def build_in_place(force=False):
    """Compile into refmoe/ beside this folder; returns the module's path. Errors of the compiler are raised."""
    suffix = ".abi3.so" if not sysconfig.get_config_var("Py_GIL_DISABLED") else sysconfig.get_config_var("EXT_SUFFIX")
    target = HERE.parent / "refmoe" / f"_kernels{suffix}"
    if _is_current(target) and not force:
        return target
    os.environ["REFMOE_REQUIRE_C"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        made = make_builder(HERE).compile(tmpdir=folder)
        aside = target.with_name(target.name + ".new")
        shutil.copyfile(made, aside)
    os.replace(aside, target)
    return target


if __name__ == "__main__":
    print(build_in_place("--force" in sys.argv[1:]))
elif __name__ == "__cffi__":
    ffibuilder = make_builder("csrc")
