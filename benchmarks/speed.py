"""Every kind of part against its counterpart in transformers or torch on this CPU, in one table, one thread.

Times are of a forward and a backward pass (of a whole step, for `training step`); a ratio above 1 means that morphogen
is the faster. Whole layers at dim 256, without their norm; attention patterns and linear attention also as bare
operations (`op`). The exponent is the slope of log(time of ONE sequence) over log(length) at a constant number of
tokens: 1 is linear, 2 quadratic. Contestants take turns under the allocator's settings that morphogen trains with, and
times are medians of CPU seconds, as others may share the machine. `!` marks what misses its target: the ratio in
brackets, an exponent of 1.15.

    python benchmarks/speed.py [--quick] [--bf16] [--only WORD]
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence

import torch
import transformers

from contestants import Match, Step, matches
from morphogen.training.allocator import memory_kept

TOKENS, EXPONENT = 4096, 1.15
WIDTHS = ("<26", "<24", ">10", ">9", ">17", ">10")


def medians(contestants: dict[str, Step], rounds: int) -> dict[str, float]:
    """CPU seconds of each, the median over rounds in which all take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, step in contestants.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def exponent(match: Match, rounds: int, bf16: bool, quick: bool) -> float | None:
    """How the time of one sequence grows with its length."""
    lengths = match.lengths[::3] if quick else match.lengths
    if not lengths:
        return None
    taken = medians({str(n): match.ours(TOKENS // n, n, bf16) for n in lengths}, rounds)
    logs = [math.log(seconds * n / TOKENS) for seconds, n in zip(taken.values(), lengths, strict=True)]
    return statistics.linear_regression([math.log(n) for n in lengths], logs).slope


def row(match: Match, rounds: int, bf16: bool, quick: bool) -> list[str]:
    """One match's cells."""
    steps = {name: make(match.batch, match.at, bf16) for name, make in (("ours", match.ours), ("peer", match.theirs))}
    taken = medians(steps, match.rounds or rounds)
    ratio, grows = taken["peer"] / taken["ours"], exponent(match, max(2, rounds // 2), bf16, quick)
    cells = [match.kind, match.peer, f"{match.batch} x {match.at}", f"{taken['ours'] * 1e3:.1f}"]
    cells.append(f"{ratio:.2f} ({match.least:.2g}){'!' if ratio < match.least else ''}")
    missed = match.growth and grows is not None and grows > EXPONENT
    return [*cells, "" if grows is None else f"{grows:.2f}{'!' if missed else ''}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and two lengths for the exponent")
    parser.add_argument("--bf16", action="store_true", help="both sides under bf16 autocast, instead of fp32")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose kind has this word in it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    rounds = 3 if arguments.quick else 9
    print(f"{'bf16 autocast' if arguments.bf16 else 'fp32'}, forward and backward, one thread")
    show(("kind", "against", "tokens", "ms", "ratio (asked)", "exponent"))
    with memory_kept():
        for match in matches():
            if arguments.only in match.kind:
                show(row(match, rounds, arguments.bf16, arguments.quick))


def show(cells: Sequence[str]) -> None:
    """A line of the table, as soon as it is known."""
    print("".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


if __name__ == "__main__":
    main()
