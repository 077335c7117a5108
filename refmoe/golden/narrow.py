"""What of a case is written: all of it, some stages, some experts.   Spec 7.6.1

Whatever is left out has its digest in the manifest all the same, so a narrowed bundle is checked like a whole one.
"""

from typing import NamedTuple

import numpy as np

from ..refusals import require
from . import storage
from .digests import sample, sample_stride
from .inputs import is_expert_tensor

ROW_LEAVES = ("y_rms",)  # of the rows in expert order; all others end in _rows


class Narrow(NamedTuple):
    """experts: ids whose parts are written, whole; stages: names, or what stands before a dot; None: all."""

    experts: tuple = None
    stages: tuple = None
    offsets: object = None  # (E+1,) rows of each expert, once they are known

    def limits(self):
        """What the manifest says of it, among its limits."""
        asked = {"experts": self.experts, "stages": self.stages}
        return {name: list(value) for name, value in asked.items() if value is not None}

    def wants(self, name):
        """Is the tensor among the stages?"""
        return self.stages is None or any(f"{name}.".startswith(f"{stage}.") for stage in self.stages)

    def ids(self, name):
        """The experts of which a tensor's parts are written; empty: they are not told apart."""
        return self.experts if self.experts and self.wants(name) and _of_routed(name) else ()

    def part(self, name, codes):
        """The parts of an array that belong to the experts; None where it has no such parts."""
        if not self.experts or not (_of_routed(name) or (_is_rows(name) and self.offsets is not None)):
            return None
        if _of_routed(name):
            return codes[list(self.experts)]
        spans = [codes[int(self.offsets[e]) : int(self.offsets[e + 1])] for e in self.experts]
        return np.concatenate(spans)

    def held(self, name, codes, needed=False):
        """(kind, elements): how a computed tensor is written. needed: no check can do without it."""
        if needed:
            return "stored", codes
        if not self.wants(name):
            return "digest", None
        part = self.part(name, codes)
        if part is not None:
            return "experts", part
        if codes.nbytes > storage.SIZE_LIMIT:
            return "sample", sample(codes.reshape(-1), sample_stride(codes.shape))
        return "stored", codes


def narrow_of(limits, config):
    """The Narrow that the limits of a manifest describe. Raises ValueError or TypeError for what describes none."""
    experts, stages = limits.get("experts"), limits.get("stages")
    if not all(isinstance(stage, str) for stage in stages or ()):
        raise ValueError("limits: stages are names")
    return narrowed(config, experts, stages)


def _of_routed(name):
    """Does the first axis count routed experts?"""
    return is_expert_tensor(name) and ".shared." not in f".{name}"


def _is_rows(name):
    """Does the first axis count rows in expert order?"""
    leaf = name.rpartition(".")[2]
    ours = name.startswith(("experts.", "grads.")) and ".shared." not in f".{name}"
    return name == "plan.row_slot" or (ours and (leaf.endswith("_rows") or leaf in ROW_LEAVES))


class Options(NamedTuple):
    """How a bundle is written. container: safetensors, npz or raw; narrow: what of the case; ranks: of the view."""

    container: str = "safetensors"
    narrow: Narrow = Narrow()
    ranks: int = None


def narrowed(config, experts=None, stages=None, names=None):
    """A Narrow of what was asked for. Raises ValueError for ids and names that are not there.

    names: of the tensors of the case, where they are known.
    """
    E = config.num_experts
    for e in experts or ():
        require(type(e) is int and 0 <= e < E, ValueError, "--experts", f"ids from 0 to {E - 1}", repr(e), "correct it")
    experts = None if experts is None else tuple(sorted(set(experts)))
    narrow = Narrow(experts, None if stages is None else tuple(sorted(set(stages))))
    for stage in narrow.stages or () if names is not None else ():
        ok = any(f"{name}.".startswith(f"{stage}.") for name in names)
        known = ", ".join(sorted({name.partition(".")[0] for name in names}))
        fix = "`refmoe golden ... --list` shows every name"
        require(ok, ValueError, "--stages", f"names of tensors, or {known}", repr(stage), fix)
    return narrow
