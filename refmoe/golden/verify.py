"""Checking a golden bundle: every byte against the manifest, then every tensor against its recomputation.   Spec 7.8"""

from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import MoEConfig
from ..numerics import STORES, Numerics
from ..refusals import require_listener, require_path
from .bundle import MANIFEST, make_manifest, tensor_row
from .containers import find_container
from .digests import from_codes, sha256
from .errors import BundleError
from .inputs import input_shapes, make_inputs
from .manifest import read_manifest
from .narrow import Options, narrow_of
from .packed import SOURCE, read_packed
from .ranks import check_ranks
from .run import compute
from .storage import held_layout, held_name
from .weights import maker_pool

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


class Checked(NamedTuple):
    """The manifest, and (tensor, message) for each tensor that recomputation contradicts, in causal order."""

    manifest: dict
    differences: list
    tensors: int
    num: Numerics
    file: str  # that holds the tensors


def check_bundle(directory, spec_version, backend="auto", threads=None, kernel=None, say=None):
    """Reads a bundle, recomputes its case, compares bits. say: called with the name of each step.

    Raises BundleError (code 1: altered, truncated, incomplete; 2: unreadable, other SPEC_VERSION), ValueError and
    ImportError for a backend that is not to be had.
    """
    require_listener("say", say)
    with open_bundle(directory, spec_version) as (manifest, reader), maker_pool() as pool:
        path = Path(directory) / MANIFEST
        config, profile, store, options = _case(manifest, path)
        num = Numerics(profile=profile, store=store, backend=backend, threads=threads, kernel=kernel)
        made = list(_recomputed(config, num, manifest, reader, pool, path, say, options))
        found = list(_differences(made, manifest, reader, options))
        if not found and _remade(config, num, manifest, made, options) != manifest:
            found = [("", "the manifest is not the one that its case makes")]
        return Checked(manifest, found, len(made), num, reader.path.name)


@contextmanager
def open_case(directory, spec_version, backend="auto", threads=None, kernel=None):
    """(manifest, config, num, inputs) of a bundle whose bytes are those of its manifest; nothing is recomputed yet.

    Raises BundleError as `check_bundle` does.
    """
    with open_bundle(directory, spec_version) as (manifest, reader), maker_pool() as pool:
        path = Path(directory) / MANIFEST
        config, profile, store, _ = _case(manifest, path)
        num = Numerics(profile=profile, store=store, backend=backend, threads=threads, kernel=kernel)
        try:
            inputs = _inputs(config, num, manifest, reader, pool)
        except MALFORMED as error:
            raise BundleError(path, "", f"its case cannot be recomputed ({error})") from None
        yield manifest, config, num, inputs


@contextmanager
def open_bundle(directory, spec_version):
    """(manifest, reader) of a bundle in any container, once every byte is known to be the manifest's.

    `reader.entries` has the tensors by their names in the file, `reader.codes(name)` their elements.
    Raises BundleError.
    """
    require_path("directory", directory)
    directory = Path(directory)
    if not directory.is_dir():
        raise BundleError(directory, "", "is not a directory that can be read", code=2)
    manifest = read_manifest(directory / MANIFEST, spec_version)
    layout = _layout(manifest, directory / MANIFEST)
    shapes = {name: (dtype, shape) for name, (_, dtype, shape) in layout.items()}
    with find_container(directory).opened(directory, shapes) as reader:
        check_payload(reader, layout)
        yield manifest, reader


def _layout(manifest, path):
    try:
        return held_layout(manifest["tensors"])
    except MALFORMED as error:
        raise BundleError(path, "", f"its list of tensors is malformed ({type(error).__name__}: {error})") from None


def check_payload(reader, layout):
    """Every tensor of the file has the digest that its row of the manifest states."""
    for name in sorted(layout):
        row = layout[name][0]
        whole = row["storage"]["kind"] == "stored"
        found = file_digest(reader, name, whole and row["digest_of"] == "experts")
        if found != (row["sha256"] if whole else row["storage"]["sha256"]):
            raise BundleError(reader.path, name, "altered: its bytes do not have the digest of the manifest")


def file_digest(reader, name, by_expert):
    """The digest of a tensor in a file, read a mebibyte, or an expert, at a time."""
    if not by_expert:
        return sha256(reader.blocks(name))
    experts = range(reader.entry(name).shape[0])
    return sha256(bytes.fromhex(sha256(memoryview(reader.codes(name, e).reshape(-1)).cast("B"))) for e in experts)


def _case(manifest, path):
    run = manifest["run"]
    try:
        config = MoEConfig.from_dict(manifest["config"])
        if type(run["tokens"]) is not int or run["tokens"] < 0 or run["store"] not in STORES[run["profile"]]:
            raise ValueError("run: tokens, profile and store do not fit together")
        _require_sizes(manifest, config)
        return config, run["profile"], run["store"], _options(manifest, config)
    except MALFORMED as error:
        raise BundleError(path, "", f"does not describe a case ({error})") from None


def _require_sizes(manifest, config):
    """The case has the sizes of the tensors listed: none is made by a configuration that contradicts them."""
    listed = {row["name"]: row["shape"] for row in manifest["tensors"]}
    shapes = input_shapes(config, manifest["run"]["tokens"])
    for name, row in manifest["inputs"].items():
        listed_name = f"{name}.dequantised" if f"{name}.dequantised" in listed else name
        got, wanted = listed.get(listed_name), list(shapes.get(name, ()))
        if name in shapes and row["source"] != SOURCE and got != wanted:  # codes are in the file, at their sizes
            raise ValueError(f"{listed_name}: its configuration makes it {wanted}, its list of tensors says {got}")


def _options(manifest, config):
    ranks = manifest["run"].get("ranks")
    if ranks is not None:
        if type(ranks) is not int:
            raise ValueError("run: ranks are a number")
        check_ranks(config, ranks)
    return Options(narrow=narrow_of(manifest["limits"], config), ranks=ranks)


def _recomputed(config, num, manifest, reader, pool, path, say, options):
    try:
        yield from compute(config, _inputs(config, num, manifest, reader, pool), num, pool, say, options)
    except MALFORMED as error:
        raise BundleError(path, "", f"its case cannot be recomputed ({error})") from None


def _inputs(config, num, manifest, reader, pool):
    rows = manifest["inputs"]
    stored = {name: _carrier(reader, name) for name, row in rows.items() if row["source"] == "stored"}
    stored |= {name: read_packed(reader, name, row) for name, row in rows.items() if row["source"] == SOURCE}
    return make_inputs(config, num, manifest["run"]["tokens"], rows, stored, pool)


def _carrier(reader, name):
    return from_codes(reader.codes(name), reader.entry(name).dtype)


def _differences(made, manifest, reader, options):
    rows = {row["name"]: row for row in manifest["tensors"]}
    for m in made:
        row = rows.pop(m.name, None)
        if row is None:
            yield m.name, "the case makes this tensor, the bundle lacks it"
        elif (m.dtype, list(m.shape), m.kind) != (row["dtype"], row["shape"], row["storage"]["kind"]):
            yield (
                m.name,
                f"recomputed as {m.dtype} {list(m.shape)} ({m.kind}), the bundle says {row['dtype']} {row['shape']}",
            )
        elif tensor_row(m, options.narrow) != row:
            yield m.name, _first_difference(m, reader)
    for name in rows:
        yield name, "the bundle has this tensor, the case does not make it"


def _remade(config, num, manifest, made, options):
    spec_version, title, tokens = manifest["spec_version"], manifest["title"], manifest["run"]["tokens"]
    return make_manifest(config, num, spec_version, title, tokens, manifest["inputs"], made, options)


def _first_difference(made, reader):
    if not isinstance(made.codes, np.ndarray):
        return "its recomputed digest differs"
    name = held_name(made.name, made.kind)
    found = reader.codes(name).reshape(-1)
    wanted = np.ascontiguousarray(made.codes).reshape(-1)
    bits = np.dtype(f"u{wanted.dtype.itemsize}")
    places = np.flatnonzero(found.view(bits) != wanted.view(bits))
    if not places.size:
        return "its recomputed digest or description differs" + (
            "" if made.kind == "stored" else ", outside what is held of it"
        )
    i = places[0]
    values = from_codes(found[i : i + 1], made.dtype)[0], from_codes(wanted[i : i + 1], made.dtype)[0]
    where = [int(k) for k in np.unravel_index(i, made.shape)] if made.kind == "stored" else f"{made.kind} {i}"
    return (
        f"{places.size} of {wanted.size} elements differ, first at {where}: bundle {values[0]}, recomputed {values[1]}"
    )
