"""Lexicase selection: cases in random order, each keeping only the best. Every case is a column of F_nc, minimised.

With weights a case of weight w is w times as likely as one of weight 1 to be the next; one of weight 0 is never asked.
Rows that no case can tell apart are drawn from evenly.
Sources: Spector 2012 (lexicase); La Cava, Spector and Danai 2016 (epsilon by the median absolute deviation);
Hernandez et al. 2019 (down-sampling the cases).
"""

import numpy as np

from morphogen.selection.objectives import Floats


def deviations(F_nc: Floats) -> Floats:
    """The median absolute deviation from the median of the finite values of every column, shape (c,); 0 for none.

    A missing value is infinite, and would make the tolerance of the others not a number.
    """
    found = [column[np.isfinite(column)] for column in F_nc.T]
    with np.errstate(over="ignore"):  # a spread too wide for a number tolerates everything
        return np.array([np.median(np.abs(x - np.median(x))) if len(x) else 0.0 for x in found], dtype=np.float64)


def order(count: int, rng: np.random.Generator, weight_c: Floats | None = None) -> list[int]:
    """The cases in random order, drawn one after another by weight."""
    if weight_c is None:
        return [int(case) for case in rng.permutation(count)]
    left = np.flatnonzero(weight_c)
    if len(left) == 0:
        return []
    share_c = weight_c[left] / weight_c[left].sum()
    return [int(case) for case in rng.choice(left, len(left), replace=False, p=share_c)]


def choose(
    F_nc: Floats,
    epsilon_c: Floats,
    rng: np.random.Generator,
    tie_cnn: Floats | None = None,
    weight_c: Floats | None = None,
) -> int:
    """The row number of a parent within `epsilon_c` of the best of those left at every case: 0 for plain lexicase,
    `deviations` for epsilon-lexicase. tie_cnn: how far two rows may be apart by noise alone; whoever is within that of
    the best goes on too. weight_c: of the cases; None: all weigh the same. ValueError when there are no rows."""
    if len(F_nc) == 0:
        raise ValueError("lexicase: there are no candidates to select from")
    pool = np.arange(len(F_nc))
    for case in order(F_nc.shape[1], rng, weight_c):
        values = F_nc[pool, case]
        with np.errstate(over="ignore"):
            near_n = values <= values.min() + epsilon_c[case]
            if tie_cnn is not None:
                best = int(values.argmin())
                near_n |= values <= values[best] + tie_cnn[case, pool[best], pool]
            pool = pool[near_n]
        if len(pool) == 1:
            break
    return int(rng.choice(pool))
