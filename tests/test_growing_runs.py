"""Sweeps whose candidates grow: the same lineage however they are carried out, and what is said of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kills import killed
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Status
from morphogen.cli.doctor import examine
from morphogen.cost import train_flops
from morphogen.execution import Execution
from morphogen.run import evolve, load
from morphogen.store.ledger import Ledger, Repeated, Reported
from tiny import events, untimed, write_config

pytestmark = pytest.mark.trained_before

RULES = [
    {"when": {"trigger": "step", "at": 2}, "do": {"action": "widen", "target": "ffn", "factor": 1.5}},
    {
        "when": {"trigger": "step", "every": 3},
        "do": {"action": "to_moe", "n_experts": 3, "k": 1},
        "limits": {"max_times": 1},
    },
    {
        "when": {"trigger": "plateau", "window": 2, "tolerance": 10.0},
        "do": {"action": "deepen"},
        "limits": {"max_layers": 3, "cooldown_steps": 1},
    },
    {
        "when": {"trigger": "expert_usage", "interval": 1, "window": 2, "min_age": 1, "split_above": 1.01},
        "do": {"action": "split_experts", "max_experts": 4},
    },
]


def grown(folder: Path, rules: list[dict[str, Any]] = RULES, **evolution: Any) -> Path:
    """The tiny experiment with rules of growth, of a narrow model, so that all of a sweep is quick."""
    path = write_config(folder)
    written = yaml.safe_load(path.read_text())
    written["model"]["growth"] = rules
    written["evolution"] |= {"survivors": "train", "population": 2}
    written["evolution"] |= {"mutation_weights": {"widen_ffn": 1.0, "tune_growth_rule": 1.0}}
    written["evolution"] |= evolution
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("growing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        yield grown(folder)


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evolve(load(config), folder)
    return folder


def same_run(a: Path, b: Path) -> None:
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)
    assert examine(a) == examine(b) == []


def test_what_candidates_grew_into_is_on_record_and_goes_on_in_their_children(whole: Path) -> None:
    lineage = untimed(whole / "lineage.json")
    nodes = {node["id"]: node for node in lineage["nodes"]}
    parents = {edge["child"]: edge["parent"] for edge in lineage["edges"]}
    assert all(node["status"] == Status.TRAINED for node in nodes.values())
    assert {event["rule"] for node in nodes.values() for event in node["growth"]} == {f"rule{i}" for i in range(4)}
    for id, node in nodes.items():
        if node["growth"]:
            assert node["costs"]["params"] == node["growth"][-1]["after"]["params"]
        behind = []
        while id in parents:
            id = parents[id]
            behind += nodes[id]["growth"]
        assert sum(event["rule"] == "rule0" for event in [*behind, *node["growth"]]) == 1
        assert all(event["steps"] >= 3 for event in node["growth"]) or not behind


SOME = ["append:2", "checkpoint:3", "step:4"]
MORE = ["append:1", "step:2", "rename:7", "tell:3", "export:1", "checkpoint:2", "apply:4", "step:5", "0.1", "0.05"]


@pytest.mark.parametrize("moments", [SOME, pytest.param(MORE, marks=pytest.mark.slow)], ids=["some", "more"])
@pytest.mark.anew
def test_a_sweep_that_is_killed_and_resumed_has_the_same_lineage(
    moments: list[str], config: Path, whole: Path, tmp_path: Path
) -> None:
    *codes, last = killed(load(config), tmp_path / "run", moments)
    assert codes.count(-9) >= 3
    assert last == 0
    same_run(tmp_path / "run", whole)
    assert events(tmp_path / "run") == events(whole)


def test_workers_give_the_same_lineage(config: Path, whole: Path, tmp_path: Path) -> None:
    evolve(load(config), tmp_path / "run", execution=Execution(workers=2))
    same_run(tmp_path / "run", whole)


def test_a_budget_of_flops_counts_what_growth_costs_and_twins_are_of_what_grew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    rule = {"when": {"trigger": "step", "every": 5}, "do": {"action": "widen", "target": "ffn", "factor": 4.0}}
    path = grown(tmp_path, [rule], budget="flops", rank_by="scratch", rung1_tokens=512, rung2_tokens=768, generations=1)
    run = evolve(load(path), tmp_path / "run")
    root = run.lineage.nodes[0]
    assert root.growth
    for node in run.lineage.nodes:
        assert node.status is Status.TRAINED, node.reason
        assert node.metrics["budget_share"] == pytest.approx(1.0, abs=0.35)  # whole steps, few and large at the end
        trained = node.flops - (node.twin.flops if node.twin is not None else 0.0)
        assert trained <= root.flops * 1.01
        if node.twin is not None and node.blueprint is not None:
            each = train_flops(Blueprint.model_validate(node.blueprint), 32, 1)
            assert node.twin.flops == node.twin.tokens * each


def test_halving_goes_on_with_what_a_candidate_has_grown_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules remember from one round to the next, as though it were one training."""
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    halving = {"rungs": "asha", "eta": 2, "min_tokens": 256, "max_tokens": 1024, "generations": 1}
    run = evolve(load(grown(tmp_path, **halving, survivors="rest")), tmp_path / "run")
    root = run.lineage.nodes[0]
    assert root.steps == 8
    assert [event.rule for event in root.growth].count("rule0") == 1
    own = [event.own_steps for event in root.growth]
    assert own == sorted(own)
    assert max(own) > 2
    assert examine(tmp_path / "run") == []


def test_finalists_that_are_annealed_grow_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    rules = [{"when": {"trigger": "step", "every": 1}, "do": {"action": "widen", "target": "ffn", "factor": 1.1}}]
    path = grown(tmp_path, rules, generations=0, anneal_tokens=2048)
    evolve(load(path), out=tmp_path / "run")
    with Ledger.open(tmp_path / "run", readonly=True) as ledger:
        told = list(ledger.events())
    (annealed,) = [event.report for event in told if isinstance(event, Repeated)]
    (root,) = [event.report for event in told if isinstance(event, Reported)]
    assert root.growth
    assert annealed.tokens.own > root.tokens.own
    assert annealed.growth == root.growth
    assert annealed.costs["params"] == root.costs["params"]


def test_a_candidates_checkpoint_says_what_it_began_as_and_how_it_grew(whole: Path, capsys: Any) -> None:
    from morphogen.cli import main

    with Ledger.open(whole, readonly=True) as ledger:
        report = next(event.report for event in ledger.events() if isinstance(event, Reported) and event.report.growth)
    assert report.checkpoint is not None
    with pytest.raises(SystemExit) as done:
        main(["status", str(whole / report.checkpoint), "--json"])
    assert done.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["growth"]) == len(report.growth)
    assert told["at_start"]["params"] == report.growth[0].before.params
