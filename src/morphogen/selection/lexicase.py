"""Lexicase selection: cases in random order, each keeping only the best. Every case is a column of F_nm, minimised.

Both functions return the row number of one parent. Rows that no case can tell apart are drawn from evenly.
Sources: Spector 2012 (lexicase); La Cava, Spector and Danai 2016 (epsilon by the median absolute deviation).
"""

import numpy as np

from morphogen.selection.objectives import Floats


def lexicase(F_nm: Floats, rng: np.random.Generator) -> int:
    """A parent whose value is exactly the best of those left at every case it was tried on."""
    return _filter(F_nm, np.zeros(F_nm.shape[1]), rng)


def epsilon_lexicase(F_nm: Floats, rng: np.random.Generator) -> int:
    """A parent within epsilon of the best of those left at every case; epsilon is the column's own MAD."""
    epsilon_m = np.median(np.abs(F_nm - np.median(F_nm, axis=0)), axis=0)
    return _filter(F_nm, epsilon_m, rng)


def _filter(F_nm: Floats, epsilon_m: Floats, rng: np.random.Generator) -> int:
    if len(F_nm) == 0:
        raise ValueError("lexicase: there are no candidates to select from")
    pool = np.arange(len(F_nm))
    for case in rng.permutation(F_nm.shape[1]):
        values = F_nm[pool, case]
        pool = pool[values <= values.min() + epsilon_m[case]]
    return int(rng.choice(pool))
