"""Motifs of architectures, and the exact tests that they are put to."""

import numpy as np
import pytest
from scipy import stats

from morphogen.analysis.motifs import Population, compared, motifs_of
from morphogen.analysis.statistics import Table, benjamini_hochberg, exact_excess

DENSE = {"kind": "dense", "activation": "swiglu"}


def test_parts_pairs_and_places_are_motifs() -> None:
    blueprint = {
        "norm": "layernorm",
        "blocks": [
            {"attn": {"kind": "GQA", "sparsity": "sliding", "selector": "none"}, "ffn": DENSE},
            {"ssm": {"kind": "mamba2"}, "extras": [{"kind": "retro"}], "ffn": None},
            {"ffn": {"kind": "moe", "experts": [{"kind": "mamba2"}]}, "parallel": True},
        ],
        "recurrences": [{"start": 0, "end": 1}],
    }
    found = motifs_of(blueprint)
    assert {"attn:GQA", "attn.sparsity=sliding", "ssm:mamba2", "extra:retro", "ffn:moe", "ffn.experts=mamba2"} <= found
    assert {"attn:GQA + ffn:dense", "extra:retro + ssm:mamba2", "attn:GQA > ssm:mamba2"} <= found
    assert {"attn:GQA @ first", "ffn:moe @ last", "ssm:mamba2 @ middle", "norm=layernorm", "recurrence"} <= found
    assert not {"attn.selector=none", "ffn:moe @ first", "attn:GQA > ffn:moe", "growth rule"} & found


def test_one_table_is_fishers_test() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        chosen, others = (int(n) for n in rng.integers(1, 12, 2))
        a, b = int(rng.integers(0, chosen + 1)), int(rng.integers(0, others + 1))
        theirs = stats.fisher_exact([[a, chosen - a], [b, others - b]], alternative="greater").pvalue
        assert exact_excess([Table(a, chosen, b, others)]) == pytest.approx(theirs, abs=1e-12)


def test_runs_with_more_of_a_motif_on_both_sides_show_nothing() -> None:
    # pooled as one table, 9 of 10 against 11 of 30 would be a finding
    tables = [Table(9, 9, 10, 10), Table(0, 1, 1, 20)]
    assert exact_excess([Table(9, 10, 11, 30)]) < 0.01
    assert exact_excess(tables) > 0.9


def test_several_tables_are_the_exact_distribution_of_their_sum() -> None:
    tables = [Table(2, 3, 1, 4), Table(1, 2, 1, 3)]
    total = 0.0
    for first in range(4):
        for second in range(3):
            chance = stats.hypergeom.pmf(first, 7, 3, 3) * stats.hypergeom.pmf(second, 5, 2, 2)
            total += chance if first + second >= 3 else 0.0
    assert exact_excess(tables) == pytest.approx(total)


def test_the_share_of_false_findings_is_corrected_as_scipy_does() -> None:
    p = np.random.default_rng(1).random(30) ** 3
    assert benjamini_hochberg(p.tolist()) == pytest.approx(stats.false_discovery_control(p).tolist())
    assert benjamini_hochberg([]) == []


def test_a_planted_motif_is_found_and_what_the_same_architectures_have_is_told_as_one() -> None:
    rng = np.random.default_rng(2)
    noise = [f"noise{i}" for i in range(30)]

    def drawn(*planted: str) -> frozenset[str]:
        return frozenset([*planted, *(name for name in noise if rng.random() < 0.5)])

    frontier = tuple(drawn("all", "ffn:moe", "ffn:moe @ last") for _ in range(8))
    found = compared([Population("r", frontier, tuple(drawn("all") for _ in range(40)))])
    first, *rest = found
    assert (first.motif, first.alike, first.sort) == ("ffn:moe", ("ffn:moe @ last",), "part")
    assert (first.frontier, first.of_frontier, first.others, first.of_others) == (8, 8, 0, 40)
    assert first.p_holm < 1e-5
    assert "all" not in [one.motif for one in found]
    assert min(one.p_holm for one in rest) > 0.05


def test_under_chance_alone_few_motifs_are_found() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(40):
        each = [frozenset(f"m{i}" for i in range(20) if rng.random() < 0.4) for _ in range(30)]
        hits += any(one.p_holm <= 0.05 for one in compared([Population("r", tuple(each[:6]), tuple(each[6:]))]))
    assert hits <= 4
