"""Survival by hypervolume contribution against volumes counted cell by cell."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import matrix_of

from examples import up_to
from morphogen.selection.contribution import _Exact, _Sampled, least, scaled, smsemoa

SIDE = 4


def alone(points):
    """How many unit cells of the box up to `SIDE` each point dominates that no other one does."""
    cells = list(itertools.product(range(SIDE), repeat=len(points[0])))
    covers = [{cell for cell in cells if all(x <= c for x, c in zip(p, cell, strict=True))} for p in points]
    others = [set().union(*(c for j, c in enumerate(covers) if j != i)) for i in range(len(points))]
    return [len(mine - theirs) for mine, theirs in zip(covers, others, strict=True)]


GRIDS = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, SIDE), min_size=m, max_size=m), min_size=1, max_size=8)
)


@settings(max_examples=up_to(120), deadline=None)
@given(GRIDS)
def test_contributions_are_the_cells_that_a_point_covers_alone(points):
    rows = list(range(len(points)))
    got = _Exact(np.array(points, dtype=float), float(SIDE)).contributions(rows)
    assert got == pytest.approx(alone(points), abs=1e-9)


@settings(max_examples=up_to(60), deadline=None)
@given(GRIDS, st.integers(0, 8))
def test_who_contributes_least_goes_first_and_of_those_alike_the_last(points, drop):
    left, gone = list(range(len(points))), []
    for _ in range(min(drop, len(points))):
        counts = alone([points[i] for i in left])
        gone.append(left.pop(max(k for k, count in enumerate(counts) if count == min(counts))))
    assert least(np.array(points, dtype=float), float(SIDE), len(gone), np.random.default_rng(0)).tolist() == gone


def sphere(n, m, seed=0):
    F = np.abs(np.random.default_rng(seed).normal(size=(n, m)))
    return F / np.linalg.norm(F, axis=1, keepdims=True)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_estimate_for_many_objectives_is_near_the_volume(m):
    F = sphere(12, m)
    rows = list(range(12))
    exact = _Exact(F, 1.25).contributions(rows)
    shares = _Sampled(F, 1.25, np.random.default_rng(0)).contributions(rows) / 10_000
    assert shares * np.prod(1.25 - F.min(axis=0)) == pytest.approx(exact, abs=0.012)


def test_what_is_left_is_a_larger_volume_than_crowding_leaves():
    from pymoo.indicators.hv import HV

    from morphogen.selection.survival import rank_crowding

    for m in (2, 3, 6):
        F, volume = sphere(80, m), HV(ref_point=np.full(m, 1.2))
        kept = [
            rule(matrix_of(F), np.arange(80), F[:0], 10, np.random.default_rng(0)) for rule in (smsemoa, rank_crowding)
        ]
        ours, crowded = (volume(F[rows]) for rows in kept)
        assert len(kept[0]) == 10
        assert ours > crowded


def test_units_do_not_matter_and_the_runs_frontier_gives_the_scale():
    F, rng = sphere(30, 3), np.random.default_rng(0)
    kept = smsemoa(matrix_of(F), np.arange(30), F[:0], 8, rng)
    other = smsemoa(matrix_of(F * [1e9, 1e-9, 1.0] + [0.0, 0.0, 5.0]), np.arange(30), F[:0], 8, rng)
    assert sorted(kept) == sorted(other)
    assert scaled(np.array([[0.5, 7.0]]), np.array([[0.0, 7.0], [1.0, 7.0]])).tolist() == [[0.5, 0.0]]
    assert np.isfinite(scaled(np.array([[1.7e308], [-1.7e308]]), np.array([[1.7e308], [-1.7e308]]))).all()


def test_whole_fronts_stay_and_the_infeasible_fill_up():
    F = [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [1.5, 3.0], [3.0, 1.5], [0.0, 0.0]]
    scored = matrix_of(F, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    rng = np.random.default_rng(0)
    none = np.empty((0, 2))
    assert set(smsemoa(scored, np.arange(6), none, 2, rng)) == {0, 1}
    assert {0, 1} < set(smsemoa(scored, np.arange(6), none, 4, rng)) < {0, 1, 2, 3, 4}
    assert set(smsemoa(scored, np.arange(6), none, 6, rng)) == set(range(6))
    assert len(smsemoa(scored, np.arange(6), none, 0, rng)) == 0
