"""The experiments, one file each; EXPERIMENTS is the table of them.   spec/lab/README.md"""

from ...refusals import require
from . import (
    balance_scope,
    balance_sweep,
    bias_rules,
    capacity,
    causality,
    collapse,
    columns,
    dense,
    estimators,
    fine,
    precision,
    ranks,
    replicas,
    shared,
    text_routers,
)

MODULES = (
    *(collapse, balance_sweep, bias_rules, balance_scope, capacity, shared, fine, dense, precision, columns),
    *(estimators, causality, text_routers, ranks, replicas),
)
EXPERIMENTS = {module.EXPERIMENT.id: module.EXPERIMENT for module in MODULES}


def find_experiments(word):
    """The experiments of an id, a name or "all". Raises ValueError that lists what there is."""
    found = [e for e in EXPERIMENTS.values() if word.lower() in (e.id.lower(), e.name, "all")]
    known = ", ".join(f"{e.id} ({e.name})" for e in EXPERIMENTS.values())
    require(found, ValueError, "experiment", f"all or one of {known}", repr(word), "`refmoe lab list` describes them")
    return found
