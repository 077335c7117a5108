# Two commands matter: `make golden` and `make test`. Each target sets up .venv for itself when it must.
# Needs Python 3.11+ with headers and venv, gcc, make, and pip's network; nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILT  := $(VENV)/.built
READY  := $(VENV)/.ready
LINTER := $(VENV)/.linter
GOLDEN := out/qwen3-30b-a3b
INTEROP := .venv-interop
PEERS  := torch==2.13.0 transformers==5.23.0
# Timed beside these where they install; what is missing is named by `refmoe bench --peers`.
MORE   := jax onnxruntime onnx llama-cpp-python
RIVALS := .venv-peers
NATIVE := $(wildcard csrc/*.c csrc/*.h csrc/*.py csrc/*.mk)
LIB    := out/lib
OPENMP := -fopenmp
CROSS  :=

# A C module that does not compile is an error here, not a quiet fall back to NumPy or to an older one.
export REFMOE_REQUIRE_C ?= 1
# Thread pools of libraries would only compete with the two that the kernels use.
export OPENBLAS_NUM_THREADS ?= 2
# The tests run on every core, at most four; `make test WORKERS=` runs them in one process.
WORKERS := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help build golden test smoke kernels vectors mutants lint interop consumers browser fuzz exhaustive digests faults cross lib example bench-peers size clean

help:
	@echo "make golden      build, then write and verify $(GOLDEN): a full-size layer, forward and backward"
	@echo "make test        everything, under 10 minutes; fails if the skipped tests differ from tests/skips.txt"
	@echo "make smoke       the core in seconds: a few tests, the vectors, a bundle by C checked by NumPy"
	@echo "make kernels     which kernels this machine can run"
	@echo "make vectors     write spec/vectors again (they must not change unless SPEC_VERSION does)"
	@echo "make mutants     try the gallery of wrong layers; write the flags it proves and the README's table"
	@echo "make lint        ruff"
	@echo "make interop     compare with every block of transformers, in an environment of its own ($(PEERS))"
	@echo "make consumers   bundles read, recomputed and judged in C, C++, JavaScript, PyTorch and JAX; wrong copies refused"
	@echo "make browser     the HTML pages in Chromium, at a phone's width and a desk's; copies with a fault refused"
	@echo "make fuzz        five minutes of layers drawn at random: every reading must agree"
	@echo "make exhaustive  every float32 input of the functions of one variable: hours"
	@echo "make digests     the full-size bundle under every kernel, thread count, Python and NumPy: one digest, minutes"
	@echo "make faults      a small bundle spoilt in every byte, in each container: every fault must be refused"
	@echo "make cross       the kernels against NumPy's bits: native, sanitized, and emulated aarch64 and 32-bit ARM"
	@echo "make lib         $(LIB): the kernels as a C library, static and shared, without Python"
	@echo "make example     compile csrc/example.c against it through pkg-config, both ways, and run it"
	@echo "make bench-peers the peers that \`refmoe bench --peers\` times, in $(RIVALS)"
	@echo "make size        lines of each part of the house"
	@echo "make build       set up $(VENV) with the C module and what the tests need"
	@echo "make clean       remove what these commands made, $(VENV) included"

build: $(READY)

# The package alone, and pytest: all that golden, smoke and the commands need. The editable install compiles the kernels
# in place, so a change of csrc/ or of the metadata repeats it.
$(BUILT): pyproject.toml setup.py $(NATIVE)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"refmoe needs Python 3.11 or newer, {sys.executable} is {v.major}.{v.minor}; set PYTHON=")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "refmoe needs Python with venv (on Debian: python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; h = os.path.join(sysconfig.get_path("include"), "Python.h"); sys.exit(not os.path.exists(h) and f"refmoe needs the headers of Python (on Debian: python3-dev); {h} is missing")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . 'pytest>=8'
	@touch $@

# What the whole suite needs besides: the extra of pyproject.toml, without compiling the kernels again.
$(READY): $(BUILT)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"], sep="\n")' \
	  | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

$(LINTER): $(BUILT)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ruff>=0.9'
	@touch $@

golden: $(BUILT)
	$(BIN)/refmoe golden qwen3-30b-a3b --scale full --tokens 64 --out $(GOLDEN) --force
	$(BIN)/refmoe check $(GOLDEN)

test: $(READY)
	OMP_WAIT_POLICY=passive OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --check-skips $(WORKERS)

smoke: $(BUILT)
	$(BIN)/python -m pytest -q -x tests/test_recipes.py tests/test_routing.py tests/test_dispatch.py tests/test_experts.py
	$(BIN)/refmoe vectors --check
	$(BIN)/refmoe golden mixtral-8x7b --scale minimal --tokens 5 --backend c --out out/smoke --force
	$(BIN)/refmoe check out/smoke --backend numpy

kernels: $(BUILT)
	$(BIN)/refmoe kernels

vectors: $(BUILT)
	$(BIN)/refmoe vectors

mutants: $(READY)
	$(BIN)/python -m tests.mutants --flags
	$(BIN)/refmoe vectors
	$(BIN)/python -m tests.mutants --write README.md

lint: $(LINTER)
	$(BIN)/ruff check .

digests: $(BUILT)
	$(BIN)/python tests/exhaustive/digests.py --others out/pythons $(DIGESTS)

faults: $(BUILT)
	$(BIN)/python tests/exhaustive/faults.py $(FAULTS)

$(INTEROP)/.ready: Makefile pyproject.toml setup.py $(NATIVE)
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -e . 'pytest>=8' $(PEERS)
	@touch $@

interop: $(INTEROP)/.ready
	$(INTEROP)/bin/python -m pytest -q -o python_files='compare_*.py' tests/interop

# JAX is not to be had everywhere; run.py says which consumers may be left out, and fails on any other.
consumers: $(INTEROP)/.ready
	$(INTEROP)/bin/python -c 'import jax' 2>/dev/null || \
	  timeout 60 $(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check jax==0.10.2 || true
	OMP_WAIT_POLICY=passive $(INTEROP)/bin/python tests/consumers/run.py

browser: $(READY)
	$(BIN)/python tests/browser/run.py

bench-peers: $(RIVALS)/.ready

$(RIVALS)/.ready: Makefile
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check 'numpy>=2.0' 'cffi>=2.0' $(PEERS)
	@for peer in $(MORE); do \
	  $(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check $$peer || echo "not installed: $$peer"; done
	@touch $@

fuzz: $(READY)
	$(BIN)/python tests/random_layers.py --first $$(date +%s)

exhaustive: $(READY)
	$(BIN)/python tests/exhaustive/elementary.py
	$(BIN)/python tests/exhaustive/compiled.py

cross: $(BUILT)
	$(BIN)/python tests/cross/cross.py $(CROSS)

# --- the C library: a C compiler and make are enough. OPENMP= builds it serial, LIB= elsewhere. ---

include csrc/flags.mk
LIBRARY := $(LIB)/lib/librefmoe_kernels
PC      := $(LIB)/lib/pkgconfig/refmoe_kernels.pc
OFFERED := refmoe_kernels.h refmoe_formulas.h refmoe_sums.h refmoe_written.h refmoe_experts.h refmoe_attention.h refmoe_dispatch.h
OBJECTS := $(SOURCES:%.c=$(LIB)/obj/%.o)

lib: $(LIBRARY).a $(LIBRARY).so $(OFFERED:%=$(LIB)/include/%) $(PC)

$(LIB)/obj/%.o: csrc/%.c $(NATIVE)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(ARITHMETIC) $(OTHER) $(OPENMP) -fPIC -DREFMOE_EXPORT -c $< -o $@

$(LIBRARY).a: $(OBJECTS)
	@mkdir -p $(@D)
	rm -f $@
	$(AR) rcs $@ $^

# No library of mathematics is linked, and nothing may be left undefined: a libm symbol is an error here.
$(LIBRARY).so: $(OBJECTS)
	@mkdir -p $(@D)
	$(CC) -shared -Wl,-z,defs -Wl,-soname,$(@F) $(OPENMP) -pthread $^ -o $@

$(LIB)/include/%.h: csrc/%.h
	@mkdir -p $(@D)
	cp $< $@

$(PC): csrc/refmoe_kernels.pc.in refmoe/__init__.py
	@mkdir -p $(@D)
	sed -e "s/@VERSION@/$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' refmoe/__init__.py)/" -e 's/@OPENMP@/$(OPENMP)/' $< > $@

# The static library is named as a file, since -l prefers the shared one beside it.
example: lib
	command -v pkg-config >/dev/null || { echo "make example needs pkg-config (on Debian: pkgconf)" >&2; exit 1; }
	export PKG_CONFIG_PATH=$(abspath $(LIB))/lib/pkgconfig; set -e; \
	  $(CC) -std=c11 -Wall -Wextra csrc/example.c $$(pkg-config --cflags --libs refmoe_kernels) -o $(LIB)/example; \
	  $(CC) -std=c11 -Wall -Wextra csrc/example.c $$(pkg-config --cflags refmoe_kernels) $(LIBRARY).a \
	    $$(pkg-config --static --libs-only-other refmoe_kernels) -o $(LIB)/example-static
	LD_LIBRARY_PATH=$(LIB)/lib $(LIB)/example > $(LIB)/example.txt
	$(LIB)/example-static | diff - $(LIB)/example.txt
	cat $(LIB)/example.txt

size:
	@for part in 'refmoe/*.py refmoe/numerics/*.py' 'refmoe/golden/*.py refmoe/golden/*/*.py refmoe/models/*.py' \
	             'csrc/*' 'spec/*.md' 'tests/*.py tests/*/*.py tests/*/*.c'; do \
	  printf '%7d lines  %s\n' "$$(cat $$part 2>/dev/null | wc -l)" "$$part"; done

clean:
	rm -rf $(VENV) $(INTEROP) $(RIVALS) build dist out *.egg-info .pytest_cache .ruff_cache .hypothesis csrc/_kernels.c
	rm -f refmoe/_kernels*.so csrc/*.o
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
