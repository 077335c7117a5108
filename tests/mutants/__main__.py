"""python -m tests.mutants [--flags | --write README.md]: the table, the flags of the cases, the README's table."""

import argparse
from pathlib import Path

from refmoe.golden.cases import conformance_flags

from .table import caught, flags_text, replaced, table

parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="the table mutant by flag")
parser.add_argument("--flags", action="store_true", help="try every mutant and write which flags the cases bear")
parser.add_argument("--write", metavar="FILE", type=Path, help="write the table between its marks in this file")
args = parser.parse_args()
if args.flags:
    Path(conformance_flags.__file__).write_text(flags_text(caught()), encoding="utf-8")
elif args.write:
    args.write.write_text(replaced(args.write.read_text(encoding="utf-8")), encoding="utf-8")
else:
    print(table())
