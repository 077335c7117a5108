"""The definitions of `refmoe export --to flashinfer-bench`, run on their workloads and judged by refmoe.

    python trace_set.py EXPORT BUNDLE ACCUMULATOR
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

from refmoe.testing import assert_conforms


def verify(root, bundle, accumulator):
    for path in sorted(Path(root).glob("definitions/*/*.json")):
        definition = json.loads(path.read_text())
        namespace = {}
        exec(definition["reference"], namespace)
        for line in (Path(root) / "workloads" / path.parent.name / f"{path.stem}.jsonl").read_text().splitlines():
            inputs = json.loads(line)["workload"]["inputs"]
            tensors = load_file(Path(root) / next(iter(inputs.values()))["path"])
            (golden,) = tensors.keys() - inputs.keys()  # the bundle's name of what is computed
            made = namespace["run"](**{name: tensors[row["tensor_key"]] for name, row in inputs.items()})
            assert_conforms(bundle, {golden: made}, accumulator)  # each alone: none reads what another made


if __name__ == "__main__":
    verify(*sys.argv[1:])
