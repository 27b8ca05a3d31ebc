"""Pairs of parent selection and survival, and screening: on numeric fronts and on the table of trained models.

Prints the share of the best hypervolume that each pair's runs reach, with a 95 % interval of its mean over problems and
seeds, the same paired with the default pair, and its mean rank among the pairs; then, with screening, after how many
evaluations a run has the hypervolume that the same pair without it ends with.

    python benchmarks/pairs.py [fronts|table] [--seeds 5] [--keep 8] [--pairs PAIR ...] [--screened PAIR ...]
"""

import argparse
import time
from functools import cache
from typing import NamedTuple

import numpy as np
from pymoo.indicators.hv import HV
from pymoo.problems import get_problem

from morphogen.candidate import Report, Status
from morphogen.experiment import Evolution
from morphogen.search.machine import Search
from morphogen.selection.pareto import ranks
from morphogen.testing.vectors import Vectors
from table import Table

PARENTS = ("epsilon_lexicase", "lexicase", "tournament", "pareto_uniform")
SURVIVALS = ("rank_crowding", "smsemoa", "nsga3")
DEFAULT = ("epsilon_lexicase", "rank_crowding")
#: Problem -> the corner of its volumes; each at three numbers of variables.
CORNERS = {"zdt1": (1.1, 6.0), "zdt3": (1.1, 6.0), "dtlz2": (2.5, 2.5, 2.5)}
SCALES = (5, 10, 20)
POPULATION, GENERATIONS = 8, 25
#: The same on the table, of which a search may measure a share.
FEW, ON_TABLE = 4, 0.4


class Case(NamedTuple):
    """One search: on a problem of so many variables, or on the table (no variables)."""

    problem: str
    variables: int
    seed: int


@cache
def true_volume(problem, variables):
    """Of the best front there is, and the corner."""
    if problem == "table":
        rows = Table.read().figures()
        low, high = rows.min(axis=0), rows.max(axis=0)
        front = (rows[ranks(rows) == 0] - low) / (high - low)
        return HV(ref_point=np.full(rows.shape[1], 1.1))(front), low, high
    corner = np.array(CORNERS[problem])
    if problem == "dtlz2":
        front = np.abs(np.random.default_rng(0).normal(size=(3000, 3)))
        front /= np.linalg.norm(front, axis=1, keepdims=True)
    else:
        front = get_problem(problem, n_var=variables).pareto_front()
    return HV(ref_point=np.full(len(corner), 1.1))(front / corner), np.zeros(len(corner)), corner


def searched(case, parents, survival, keep, **settings):
    """The share of the best volume that the run has found after each generation."""
    if case.problem == "table":
        table = Table.read()
        space, figures, population = table, table.measure, FEW
        generations = max(2, round(ON_TABLE * len(table) / population))
        objectives = dict.fromkeys(table.objectives, "min")
    else:
        problem = get_problem(case.problem, n_var=case.variables, **({"n_obj": 3} if case.problem == "dtlz2" else {}))
        space = Vectors(problem.xl.astype(float), problem.xu.astype(float), POPULATION)
        objectives = {f"f{i}": "min" for i in range(problem.n_obj)}
        generations, population = GENERATIONS, POPULATION

        def figures(x_v):
            return dict(zip(objectives, problem.evaluate(x_v).tolist(), strict=True))

    evolution = Evolution(
        generations=generations,
        population=population,
        topk_keep=keep,
        crossover_prob=0.5,
        parent_selection=parents,
        survival=survival,
        objectives=objectives,
        weight_inheritance="scratch",
        **settings,
    )
    search, found = Search(evolution, space, seed=case.seed), []
    best, low, high = true_volume(case.problem, case.variables)
    volume = HV(ref_point=np.full(len(objectives), 1.1))
    while not search.done:
        search.ask()
        for candidate in search.pending():
            metrics, costs = split(figures(space.load(candidate)), space.costs(space.load(candidate)))
            status = Status.TRAINED if metrics else Status.FAILED
            search.tell(Report(id=candidate.id, status=status, metrics=metrics, costs=costs))
        search.close_generation()
        front = [[search.reports[id].value(name) for name in objectives] for id in search.frontier_ids]
        found.append(volume((np.array(front) - low) / (high - low)) / best)
    return np.array(found), len(search.candidates), search


def split(figures, costs):
    """What is measured, apart from what is known."""
    return {name: value for name, value in figures.items() if name not in costs}, costs


def interval(values):
    """The mean and half of its 95 % interval, in words."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.4f} ± {half:.4f}"


def compare(cases, pairs, keep):
    """Every pair on every case, the default pair's final shares being what the others stand beside. A third word of a
    pair is how many of the most novel survive besides."""
    final = np.array(
        [
            [searched(case, parents, survival, keep, structural_elite_k=int(k[0]) if k else 0)[0][-1] for case in cases]
            for parents, survival, *k in pairs
        ]
    )
    place = np.argsort(np.argsort(-final, axis=0), axis=0) + 1.0
    base = final[pairs.index(DEFAULT)] if DEFAULT in pairs else final[0]
    print(f"{'pair':36} {'share':>18} {'beside the default':>20} {'rank':>5}")
    for pair, shares, places in zip(pairs, final, place, strict=True):
        row = f"{'/'.join(pair):36} {interval(shares):>18} {interval(shares - base):>20}"
        print(f"{row} {places.mean():5.2f}", flush=True)


def screened(cases, pair, keep, draws, share):
    """Evaluations to the unscreened run's end, as a share of that run's, and the shares of the volume at a third and at
    the end."""
    ratios, before, after, early, taus, off = [], [], [], [], [], 0
    start = time.process_time()
    for case in cases:
        plain, asked, _ = searched(case, *pair, keep)
        helped, _, search = searched(case, *pair, keep, screening="model", screening_draws=draws, screening_share=share)
        reached = np.flatnonzero(helped >= plain[-1])
        sizes = np.cumsum(np.bincount([c.generation for c in search.candidates.values()]))
        ratios.append(sizes[reached[0]] / asked if len(reached) else np.inf)
        before.append(plain[-1])
        after.append(helped[-1])
        third = int(np.searchsorted(sizes, asked / 3.0))
        early.append((plain[third], helped[third]))
        taus.append(search.generations[-1].screening.together)
        off += sum(not generation.screening.on for generation in search.generations)
    low, middle, high = np.percentile(ratios, [25, 50, 75], method="nearest")
    print(
        f"{pair[0]}/{pair[1]} keep {keep} draws {draws} share {share}: evaluations to the end of the same without: "
        f"{middle:.2f} of them (quartiles {low:.2f}, {high:.2f}); share {interval(before)} without, {interval(after)} "
        f"with; difference {interval(np.subtract(after, before))}, after a third {interval(np.diff(early)[:, 0])}; "
        f"tau {np.mean(taus):.2f}; off in {off} generations; "
        f"{(time.process_time() - start) / len(cases):.1f} CPU-s a pair of runs",
        flush=True,
    )


def main():
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("on", choices=["fronts", "table"], nargs="?", default="table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=int, default=8)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--problems", nargs="*", default=list(CORNERS))
    parser.add_argument("--scales", nargs="*", type=int, default=list(SCALES))
    every = [f"{parents}/{survival}" for survival in SURVIVALS for parents in PARENTS]
    parser.add_argument("--pairs", nargs="*", default=every, help="PARENTS/SURVIVAL[/NOVEL]")
    parser.add_argument("--screened", nargs="*", default=[], help="pairs to try with screening: PARENTS/SURVIVAL")
    options = parser.parse_args()
    if options.on == "table":
        cases = [Case("table", 0, seed) for seed in range(options.seeds)]
    else:
        cases = [Case(p, v, seed) for p in options.problems for v in options.scales for seed in range(options.seeds)]
    if options.pairs:
        compare(cases, [tuple(pair.split("/")) for pair in options.pairs], options.keep)
    for pair in options.screened:
        screened(cases, tuple(pair.split("/")), options.keep, options.draws, options.share)


if __name__ == "__main__":
    main()
