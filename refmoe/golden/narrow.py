"""What of a case is written: all of it, some stages, some experts.   Spec 7.6.1

Whatever is left out has its digest in the manifest all the same, so a narrowed bundle is checked like a whole one.
"""

from math import prod
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

    def way(self, name, shape, size, needed=False):
        """(kind, shape in the file or None): how a computed tensor of `size` bytes is written.

        needed: no check can do without it.
        """
        if needed:
            return "stored", shape
        if not self.wants(name):
            return "digest", None
        if self._divides(name):
            spans = self._spans(name)
            return "experts", (sum(b - a for a, b in spans), *shape[1:])
        if size > storage.SIZE_LIMIT:
            return "sample", (-(-prod(shape) // sample_stride(shape)),)
        return "stored", shape

    def held(self, name, codes, needed=False):
        """(kind, elements): the same of the elements."""
        kind, _ = self.way(name, codes.shape, codes.nbytes, needed)
        if kind == "experts":
            return kind, np.concatenate([codes[a:b] for a, b in self._spans(name)])
        if kind == "sample":
            return kind, sample(codes.reshape(-1), sample_stride(codes.shape))
        return kind, codes if kind == "stored" else None

    def _divides(self, name):
        return bool(self.experts) and (_of_routed(name) or (_is_rows(name) and self.offsets is not None))

    def _spans(self, name):
        """Where the experts' parts lie along the first axis."""
        if _of_routed(name):
            return [(e, e + 1) for e in self.experts]
        return [(int(self.offsets[e]), int(self.offsets[e + 1])) for e in self.experts]


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


def narrowed(config, experts=None, stages=None):
    """A Narrow of what was asked for. Raises ValueError for experts that are not there."""
    E = config.num_experts
    for e in experts or ():
        require(type(e) is int and 0 <= e < E, ValueError, "--experts", f"ids from 0 to {E - 1}", repr(e), "correct it")
    experts = None if experts is None else tuple(sorted(set(experts)))
    return Narrow(experts, None if stages is None else tuple(sorted(set(stages))))


def require_stages(narrow, names):
    """Raises ValueError for a stage that is none of the case's tensors, nor what stands before one of their dots."""
    known, fix = ", ".join(sorted({name.partition(".")[0] for name in names})), "`--list` shows every name"
    for stage in narrow.stages or ():
        ok = any(f"{name}.".startswith(f"{stage}.") for name in names)
        require(ok, ValueError, "--stages", f"names of tensors below {known}", repr(stage), fix)
