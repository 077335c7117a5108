"""A tiny golden case, and the tools to spoil its files with."""

import json
from pathlib import Path

import numpy as np
import pytest

import refmoe
from refmoe.golden import BundleError, check_bundle, digests, manifest, write_bundle
from refmoe.golden.inputs import prepare
from refmoe.golden.narrow import Options, narrowed
from refmoe.safetensors import open_tensors, write_tensors

ROOT = Path(__file__).parent.parent


def tiny(**sections):
    return refmoe.MoEConfig.from_dict(
        {"hidden_size": 4, "intermediate_size": 3, "num_experts": 4, "top_k": 2, **sections}
    )


def write(directory, config=None, arrays=None, tokens=5, backward=True, seed=0, force=False, **more):
    """A bundle of a tiny case; more: fields of Options, and of Numerics."""
    config = config or tiny()
    narrow = narrowed(config, *(more.pop(name, None) for name in ("experts", "stages")))
    options = Options(more.pop("container", "safetensors"), narrow, more.pop("ranks", None))
    num = refmoe.Numerics(**{"backend": "numpy", **more})
    if arrays and "x" in arrays:
        tokens = None
    tokens, rows, stored = prepare(config, num, tokens, backward, seed, arrays or {})
    case = config, num, refmoe.SPEC_VERSION, "tiny", tokens, rows, stored
    return write_bundle(directory, *case, force, options=options)


def check(directory, **options):
    return check_bundle(directory, refmoe.SPEC_VERSION, **{"backend": "numpy", **options})


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def refused(directory, code=1):
    """The message with which a check of the directory ends."""
    with pytest.raises(BundleError) as caught:
        check(directory)
    assert caught.value.code == code
    return str(caught.value)


def container(path, header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    return path


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def reseal(directory, change):
    """Applies `change` to the manifest's data and seals it again, as a careful forger would."""
    path = directory / "manifest.json"
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(manifest.canonical(manifest.sealed({k: v for k, v in data.items() if k != "digest"})))


def forge(directory, name, change):
    """Alters a tensor's payload and every digest that covers it."""
    with open_tensors(directory / "tensors.safetensors") as reader:
        tensors = {n: (e.dtype, reader.codes(n).copy()) for n, e in reader.entries.items()}
    change(tensors[name][1])
    write_tensors(directory / "tensors.safetensors", tensors)

    def rows(data):
        part = name.endswith((".sample", ".experts"))
        row = next(r for r in data["tensors"] if r["name"] == (name.rpartition(".")[0] if part else name))
        digest = digests.tensor_digest(tensors[name][1], row["digest_of"] == "experts" and not part)
        (row["storage"] if part else row)["sha256"] = digest

    reseal(directory, rows)


def add_one_bit(array):
    flat = array.reshape(-1).view(np.uint8)
    flat[-4 if flat.size > 4 else 0] ^= 1
