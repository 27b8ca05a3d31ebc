"""Rules of selection: `parent_selection: least_crowded` and `survival: coin_toss`. n candidates, m objectives"""

import numpy as np

from morphogen.selection.objectives import Floats, Ints, Matrix
from morphogen.selection.parents import Pool


def least_crowded(pool: Pool, rng: np.random.Generator) -> int:
    """The row of one who is alone on the best front, or of one of several as lonely."""
    first_n = np.flatnonzero(pool.rank_n == pool.rank_n.min())
    return int(rng.choice(first_n[pool.crowding_n[first_n] == pool.crowding_n[first_n].max()]))


def coin_toss(scored: Matrix, birth_n: Ints, best_km: Floats, keep: int, rng: np.random.Generator) -> Ints:
    """The rows of those who stay: any, by lot."""
    return rng.permutation(len(scored.ids))[:keep]
