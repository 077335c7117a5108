"""The house's rules, held against the tree: floors, the one door, pairs, state, sizes, the law's sections.

What a syntax tree can show is held strictly. It cannot show the type of an operand, so two tensors added with a plain +
are left to the tests of bits.
"""

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

from refmoe.dispatch import Plan
from refmoe.layer import NON_DIFFERENTIABLE, MoEGrads, MoERecord
from refmoe.losses import LOSSES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "refmoe"
GROUND, ROOF, SIDE = -1, 5, -2
FLOORS = {
    "refusals": GROUND,
    "formats": 0, "config": 0, "recipes": 0,
    "numerics": 1,
    "scores": 2, "activations": 2, "norms": 2, "dispatch": 2, "grouped": 2,
    "selection": 2.5,
    "routing": 3, "experts": 3, "losses": 3,
    "encodings": 3, "inputs": 3.5, "soft": 3.5,
    "layer": 4,
    "__init__": ROOF, "__main__": ROOF, "check": ROOF, "info": ROOF, "bench": ROOF,
    "safetensors": ROOF, "writing": ROOF, "arguments": ROOF,
    "lab": ROOF, "golden": ROOF, "compare": ROOF, "testing": ROOF, "models": ROOF, "integrations": ROOF,
    "kernels": SIDE,
}  # fmt: skip
BOOK = [name for name, floor in FLOORS.items() if GROUND <= floor < ROOF]
VERSIONS = {"__version__", "SPEC_VERSION"}  # what the package itself holds
DOORS = {"numerics", "formats"}  # where floating-point tensors may be summed, multiplied, rounded


def files():
    return sorted(PACKAGE.rglob("*.py"))


def unit_of(path):
    """The module or wing a file belongs to: its first part under refmoe/."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}


def trees_of(unit):
    """The trees of a module, or of every file of a package."""
    return [tree for path, tree in TREES.items() if unit_of(path) == unit]


# --- floors -------------------------------------------------------------------------------------------------------


def imports_within(path, tree):
    """(node, unit) for every import of another unit of refmoe, at any depth of the code."""
    package = ("refmoe", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            full = [*base, *(node.module or "").split(".")] if node.module else list(base)
            names = [full] if len(full) > 1 else [[*full, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "refmoe":
                yield node, "__init__" if len(name) == 1 or name[1] in VERSIONS else name[1]


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    here = unit_of(path)
    assert here in FLOORS, f"{here} stands on no floor: add it to the table of the house"
    for node, there in imports_within(path, TREES[path]):
        assert there in FLOORS, f"{where(path, node)} imports {there}, which stands on no floor"
        if there == here or (FLOORS[here] == ROOF and not (here in ("golden", "models") and there == "lab")):
            continue
        side = here == "numerics" and there == "kernels"
        assert side or SIDE < FLOORS[there] < FLOORS[here], f"{where(path, node)} in {here} imports {there}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_load_numpy_and_the_standard_library_alone(path):
    """Anything heavier is imported inside the function that needs it."""
    for node in TREES[path].body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top in ("numpy", "refmoe"), f"{where(path, node)} imports {name}"


def test_the_law_and_the_library_do_not_import_each_other():
    for node in ast.walk(ast.parse((ROOT / "spec/chapters.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert "refmoe" not in ast.unparse(node)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "chapters" not in ast.unparse(node), where(path, node)


# --- one door for arithmetic --------------------------------------------------------------------------------------

# NumPy functions whose bits depend on the machine, on the order of a sum, or that round. Sums of integers are written
# as methods, which the test cannot type; it knows the receivers that are allowed to sum instead.
BANNED = """exp exp2 expm1 log log2 log10 log1p tanh sinh cosh sin cos power float_power sqrt cbrt reciprocal sum nansum
mean nanmean average var std prod nanprod cumprod dot vdot inner outer matmul vecdot matvec vecmat einsum tensordot kron
trace argpartition convolve correlate interp gradient trapezoid logaddexp logaddexp2 hypot add subtract multiply
divide true_divide round around rint linalg fft random""".split()
SUMMING_METHODS = {"sum", "mean", "dot", "prod", "var", "std", "trace", "cumprod", "round", "argpartition"}
ALLOWED_RECEIVERS = {"num", "m", "self"}  # the policy, an arithmetic; they are the door
INTEGERS = {"n", "counts", "given.counts_so_far", "counts_so_far", "assigned_per_expert"}  # names that hold counts
FREE_CALLS = {"np.add.at(counts"}  # integer counts
OF_MATH = {
    "exp",
    "expm1",
    "exp2",
    "log",
    "log1p",
    "log2",
    "tanh",
    "sinh",
    "cosh",
    "erf",
    "erfc",
    "gamma",
    "pow",
    "sqrt",
    "cbrt",
    "fsum",
    "sumprod",
    "hypot",
    "sin",
    "cos",
}


OWNERS = {"np": BANNED, "numpy": BANNED, "math": OF_MATH, "cmath": OF_MATH}


def forbidden(tree):
    """(node, what) for every use that belongs behind the door."""
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            yield node, "@"
        if isinstance(node, ast.Attribute) and node.attr in OWNERS.get(ast.unparse(node.value), ()):
            yield node, text
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = ast.unparse(node.func.value).split("[")[0]
            if node.func.attr in SUMMING_METHODS and receiver not in ALLOWED_RECEIVERS | INTEGERS | {"np"}:
                yield node, text
            if node.func.attr == "argsort" and not any(
                k.arg == "kind" and "stable" in ast.unparse(k) for k in node.keywords
            ):
                yield node, text
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if alias.name in OWNERS.get(node.module, ()):
                    yield node, f"from {node.module} import {alias.name}"


def free(tree):
    """Lines whose banned call is on integers, as FREE_CALLS spells them."""
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call))
    return {n.lineno for n in calls if any(ast.unparse(n).startswith(text) for text in FREE_CALLS)}


GUARDED = [p for p in files() if unit_of(p) in set(BOOK) - DOORS | {"golden", "models"}]


@pytest.mark.parametrize("path", GUARDED, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arithmetic_that_can_differ_stays_behind_the_door(path):
    tree = TREES[path]
    found = [f"{where(path, n)} {what}" for n, what in forbidden(tree) if n.lineno not in free(tree)]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "np.exp(x)",
        "x @ y",
        "x @= y",
        "np.sum(x)",
        "x.sum(axis=0)",
        "np.argsort(x)",
        "x.argsort()",
        "numpy.einsum('ij->i', x)",
        "from numpy import dot",
        "from math import exp",
        "math.log(x)",
        "np.linalg.norm(x)",
        "np.sqrt(x)",
    ],
)
def test_the_guard_sees(line):
    assert list(forbidden(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "num.sum('y', parts)",
        "m.sum(z)",
        "from math import prod, ceil",
        "counts[1:].sum()",
        "np.argsort(x, kind='stable')",
        "np.cumsum(counts)",
    ],
)
def test_the_guard_lets_pass(line):
    assert not list(forbidden(ast.parse(line)))


# --- pairs --------------------------------------------------------------------------------------------------------


def public_functions(tree):
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


@pytest.mark.parametrize("unit", [u for u in BOOK if u != "numerics"])
def test_backward_stands_right_after_its_forward(unit):
    """foo or foo_forward, then foo_backward (or foo_backward_x, _w); only private helpers may stand between."""
    names = [f.name for tree in trees_of(unit) for f in public_functions(tree)]
    for at, name in enumerate(names):
        match = re.fullmatch(r"(.+)_backward(_[a-z]+)?", name)
        if match:
            before = [n for n in names[:at] if not n.startswith(match[1] + "_backward")]
            assert before and before[-1].removesuffix("_forward") == match[1], (
                f"{unit}.{name} does not follow {match[1]}"
            )


# Where the gradient of a stored tensor bears another name than d_<tensor>.
NAMED_OTHERWISE = {
    "y": "given as d_y", "shared": "given as d_y",
    **dict.fromkeys(LOSSES, "given in d_losses"),
    "shared_scores": "one stage with the slope: d_shared_logits",
    "raw_topk_weights": "a copy of the kept scores: d_scores",
    "slot_rows": "what the experts read: d_x_rows",
    "router_gram": "by source: d_router_gram_orthogonality",
    "latent_rms": "within d_latent_x", "y_rms": "within d_y_rows", "latent_routed_rms": "within d_latent_routed",
    "output_rms": "within d_unnormed_y",
}  # fmt: skip


def leaf_names(kind):
    """Field names of a NamedTuple, those of nested NamedTuples in their place."""
    for name in kind._fields:
        inner = kind.__annotations__[name]
        yield from leaf_names(inner) if hasattr(inner, "_fields") else [name]


def test_every_stored_tensor_has_a_gradient_or_is_said_to_have_none():
    gradients = set(leaf_names(MoEGrads))
    constants = set(NON_DIFFERENTIABLE) | set(Plan._fields if "plan" in NON_DIFFERENTIABLE else ())
    for name in leaf_names(MoERecord):
        kinds = [f"d_{name}" in gradients, name in NAMED_OTHERWISE, name in constants]
        assert kinds.count(True) == 1, f"{name}: d_{name}, or another name for it, or NON_DIFFERENTIABLE?"


# --- state and size -----------------------------------------------------------------------------------------------

MUTATORS = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "clear", "remove", "discard"}


def module_names(tree):
    """(name, node) of what a module assigns at its top level."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, node


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_mutable_module_state(path):
    """Tables are constants (upper case); nothing at module level is ever changed."""
    tree = TREES[path]
    for name, node in module_names(tree):
        mutable = isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)
        assert not mutable or name.isupper() or name.startswith("__"), f"{where(path, node)} {name} is mutable state"
    tops = {name for name, _ in module_names(tree)}
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)):
        own = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(function):
            assert not isinstance(node, ast.Global), f"{where(path, node)} changes a module's variable"
            assert changed_name(node) not in tops - own, f"{where(path, node)} changes {changed_name(node)}"


def changed_name(node):
    """The plain name that a statement changes in place, or None."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return getattr(node.value, "id", None)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        return getattr(node.func.value, "id", None)
    return None


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.name != "utils.py"


PLACES_OF_C = [ROOT / "csrc", ROOT / "tests" / "cross"]
FILES_OF_C = {".c", ".h", ".mk", ".in"}
SOURCES_OF_C = sorted(path for place in PLACES_OF_C for path in place.iterdir() if path.suffix in FILES_OF_C)


@pytest.mark.parametrize("path", SOURCES_OF_C, ids=lambda path: path.name)
def test_lines_of_c_are_no_longer_than_those_of_python(path):
    assert not [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 120]


def test_functions_are_short():
    functions = [(p, n) for p, tree in TREES.items() for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    lengths = {f"{where(p, n)} {n.name}": n.end_lineno - n.lineno + 1 for p, n in functions}
    assert statistics.median(lengths.values()) <= 12
    assert not {name: lines for name, lines in lengths.items() if lines > 45}


# --- the law's sections, the README, the import -------------------------------------------------------------------


def headings():
    """The numbers of all chapters and sections, "3" and "3.2" alike."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "spec").glob("[0-9]-*.md")))
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*)\.? ", text, re.M))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sections_that_docstrings_name_exist(path):
    known = headings()
    for mention in re.finditer(r"\bSpec (\d[\d., ]*\d|\d)", path.read_text(encoding="utf-8")):
        for section in re.findall(r"\d+(?:\.\d+)*", mention[1]):
            assert section in known, f"{path.relative_to(ROOT)}: no section {section} in spec/"


def test_public_functions_of_the_book_name_their_section():
    for unit in set(BOOK) - {"numerics", "formats", "config", "recipes"}:
        for function in (f for tree in trees_of(unit) for f in public_functions(tree)):
            assert re.search(r"Spec \d", ast.get_docstring(function) or ""), f"{unit}.{function.name}"


def floor_plan():
    """The paths of the README's floor plan: the fenced block with a line for refmoe/, nested by indentation."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    plan = next((b for b in blocks if re.search(r"^refmoe/ ", b, re.M)), "")
    stack, found = [], []
    for line in plan.splitlines():
        indent = len(line) - len(line.lstrip())
        words = line.split()
        while stack and stack[-1][0] >= indent:
            stack.pop()
        paths = words[:1] + [w for w in words[1:4] if re.fullmatch(r"[\w./*-]+\.(py|c|h|md)|[\w.-]+/", w)]
        base = stack[-1][1] if stack else ""
        found += [base + p for p in paths]
        if words and words[0].endswith("/"):
            stack.append((indent, base + words[0]))
    return found


def test_the_readmes_floor_plan_is_the_tree():
    plan = floor_plan()
    assert plan, "README.md has no floor plan: a fenced block with a line for refmoe/"
    for path in plan:
        assert list(ROOT.glob(path.rstrip("/"))), f"README's floor plan names {path}, which is not there"
    modules = {
        f"refmoe/{p.name}" + ("/" if p.is_dir() else "")
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())
    }
    assert modules <= set(plan), f"the floor plan lacks {sorted(modules - set(plan))}"
