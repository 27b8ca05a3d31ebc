"""Reports and score matrices made by hand, and parents drawn from them."""

import numpy as np

from morphogen.candidate import Report, Status
from morphogen.figures import Descriptor
from morphogen.selection.objectives import Matrix
from morphogen.selection.parents import Pool, Rules, select_parent

OBJECTIVES = {"bpb": "min", "recall": "max"}


def report(id, status=Status.TRAINED, **metrics):
    return Report(id=id, status=status, metrics=metrics, costs={"params": 10.0}, timed={"throughput": 5.0})


def matrix_of(F, violation=None):
    F = np.asarray(F, dtype=np.float64)
    signs = np.ones(F.shape[1])
    violation = np.zeros(len(F)) if violation is None else np.asarray(violation, dtype=np.float64)
    return Matrix(tuple(f"{i:03}" for i in range(len(F))), tuple("abcdef"[: F.shape[1]]), signs, F, violation)


BY_PARAMS = {"bpb": Descriptor(scale="linear", width=1.0)}

POOL = [
    report("a", bpb=1.0, recall=0.1),
    report("b", bpb=2.0, recall=0.6),
    report("c", bpb=3.0, recall=0.9),
    report("dominated", bpb=3.5, recall=0.05),
    report("failed", Status.FAILED, bpb=0.1, recall=1.0),
]


def draw(name, reports, rng, objectives=OBJECTIVES, **rules):
    """The id of one parent."""
    return draw_many(name, reports, rng, objectives, times=1, **rules)[0]


def draw_many(name, reports, rng, objectives=OBJECTIVES, *, times, **rules):
    """The ids of so many parents, each as if it were the first to be drawn."""
    pool, found = Pool.of(reports, Rules(objectives, **rules)), []
    for _ in range(times):
        pool.deck.clear()
        found.append(pool.ids[select_parent(name, pool, rng)])
    return found
