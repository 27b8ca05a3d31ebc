"""The search against problems whose Pareto fronts are known, beside pymoo's NSGA-II and NSGA-III at equal evaluations.

Prints, per problem, the hypervolume of the last population over that of the true front: mean and standard deviation
over seeds, ours and pymoo's, and by how many standard deviations of pymoo's ours is off. Reference point: 1.1 on every
axis.

    python benchmarks/fronts.py [--quick] [--seeds 10] [--screening]
"""

import argparse
import time
from functools import partial

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.moo.nsga3 import NSGA3
from pymoo.indicators.hv import HV
from pymoo.optimize import minimize
from pymoo.problems import get_problem
from pymoo.util.ref_dirs import get_reference_directions

from morphogen.experiment import Evolution
from morphogen.testing import Vectors, searched

#: Problem -> (generations, population). DTLZ2 has 3 objectives and is for NSGA-III: 91 directions of 12 partitions.
PROBLEMS = {
    "zdt1": (200, 100),
    "zdt2": (200, 100),
    "zdt3": (200, 100),
    "zdt4": (300, 100),
    "zdt6": (300, 100),
    "dtlz2": (200, 91),
}


def problem_of(name):
    """The pymoo problem and its true front."""
    if name == "dtlz2":
        problem = get_problem(name, n_obj=3)
        return problem, problem.pareto_front(get_reference_directions("das-dennis", 3, n_partitions=12))
    problem = get_problem(name)
    return problem, problem.pareto_front(n_pareto_points=1000) if name != "zdt3" else problem.pareto_front()


def ours(name, seed, generations, population, screening="none"):
    """Objectives (n, m) of the survivors of our search."""
    problem, _ = problem_of(name)
    many = problem.n_obj > 2
    evolution = Evolution(
        generations=generations - 1,
        population=population,
        topk_keep=population,
        crossover_prob=1.0 if many else 0.9,
        parent_selection="tournament",
        tournament_size=1 if many else 2,
        survival="nsga3" if many else "rank_crowding",
        screening=screening,
        weight_inheritance="scratch",
        objectives={f"f{i}": "min" for i in range(problem.n_obj)},
    )
    space = Vectors(
        problem.xl.astype(float), problem.xu.astype(float), population, crossover_eta=30.0 if many else 15.0
    )

    def measure(x_v):
        return dict(zip(evolution.objectives, problem.evaluate(x_v).tolist(), strict=True))

    search = searched(evolution, space, measure, seed)
    assert len(search.candidates) == generations * population
    return np.array([[search.reports[id].metrics[f] for f in evolution.objectives] for id in search.survivors])


def theirs(name, seed, generations, population):
    """Objectives (n, m) of pymoo's last population."""
    problem, _ = problem_of(name)
    if problem.n_obj > 2:
        algorithm = NSGA3(get_reference_directions("das-dennis", 3, n_partitions=12), pop_size=population)
    else:
        algorithm = NSGA2(pop_size=population)
    return minimize(problem, algorithm, ("n_gen", generations), seed=seed).pop.get("F")


def main():
    """Prints the table, a line as soon as a problem is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two problems, two seeds, a tenth of the generations")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--screening", action="store_true", help="ours with screening by a model, much slower")
    options = parser.parse_args()
    screened = partial(ours, screening="model") if options.screening else ours
    names, seeds = (["zdt1", "dtlz2"], 2) if options.quick else (options.problems, options.seeds)
    print(f"{'problem':8} {'evaluations':>11} {'ours':>16} {'pymoo':>16} {'off by':>8} {'ms each':>8} {'pymoo':>6}")
    for name in names:
        generations, population = PROBLEMS[name]
        generations = generations // 10 if options.quick else generations
        problem, front = problem_of(name)
        volume = HV(ref_point=np.full(problem.n_obj, 1.1))
        ratios, seconds = {}, {}
        for run in (screened, theirs):
            start = time.process_time()
            ratios[run] = np.array(
                [volume(run(name, seed, generations, population)) / volume(front) for seed in range(seeds)]
            )
            seconds[run] = (time.process_time() - start) / seeds
        told = [f"{r.mean():.4f} ± {r.std(ddof=1):.4f}" for r in ratios.values()]
        spread = ratios[theirs].std(ddof=1)
        off = (ratios[screened].mean() - ratios[theirs].mean()) / spread if spread else np.nan
        each = [1e3 * seconds[run] / (generations * population) for run in (screened, theirs)]
        row = f"{name:8} {generations * population:11} {told[0]:>16} {told[1]:>16} {off:+6.2f}sd"
        print(f"{row} {each[0]:8.3f} {each[1]:6.3f}", flush=True)


if __name__ == "__main__":
    main()
