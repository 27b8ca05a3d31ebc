"""Each kind of part, and its variants, beside an independent implementation with the same weights, in fp32.

The reference is a layer of transformers where there is one, else a slow loop or formula. Printed are the largest
difference of the output and of the worst gradient, each relative to the reference's largest entry. Exit code 1 where an
output is off by more than 1e-5 or a gradient by more than 1e-4.

    python benchmarks/numerics.py [--quick] [--only mamba]
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from peers import TOKENS, Case, errors

FORWARD, GRADIENT = 1e-5, 1e-4
FAMILIES = ("peer_attention", "peer_layers", "references")


def cases(families: tuple[str, ...]) -> Iterator[Case]:
    """All comparisons of the families, built one by one."""
    for family in families:
        yield from importlib.import_module(family).cases()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what is compared with slow loops and formulas")
    parser.add_argument("--only", default="", help="only kinds whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peers' own
    table = Table(title=f"fp32, {TOKENS} tokens; bounds {FORWARD:.0e} forward, {GRADIENT:.0e} gradients")
    for column in ("kind", "reference", "forward", "worst gradient", "of", ""):
        table.add_column(column, justify="right" if column in ("forward", "worst gradient") else "left")
    count = beyond = 0
    for case in cases(FAMILIES[2:] if options.quick else FAMILIES):
        if not case.name.startswith(options.only):
            continue
        found = errors(case)
        bad = not (found.forward <= FORWARD and found.gradient <= GRADIENT)
        count, beyond = count + 1, beyond + bad
        numbers = (f"{found.forward:.1e}", f"{found.gradient:.1e}")
        table.add_row(case.name, case.reference, *numbers, found.tensor, "beyond" if bad else "")
    Console(width=120).print(table)
    print(f"{count} comparisons, {beyond} beyond a bound")
    if beyond or not count:
        sys.exit(1)


if __name__ == "__main__":
    main()
