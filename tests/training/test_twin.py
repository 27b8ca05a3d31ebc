"""Twins: what selection reads of candidates that inherited weights, when it reads what they are from scratch."""

import json
from pathlib import Path

import numpy as np
import pytest

from morphogen.analysis.recorded import Recorded
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Report, Status, Twin
from morphogen.errors import DivergedError
from morphogen.estimates import Estimate, known_of
from morphogen.experiment import Experiment
from morphogen.notices import Notice, Training
from morphogen.run import evolve, load
from morphogen.training import trial
from tiny import events, write_config

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = write_config(
        tmp_path_factory.mktemp("twins"),
        **{
            "generations: 2, population: 3": "generations: 2, population: 2, rank_by: scratch, mutation_steps: 1",
            "survivors: rest": "survivors: train",
        },
    )
    return load(path)


@pytest.fixture(scope="module")
def whole(own_cache: None, experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evolve(experiment, folder)
    return folder


def test_children_are_judged_by_twins_and_weights_flow_on(whole: Path) -> None:
    run = Recorded.read(whole)
    root, *others = sorted(run.candidates.values(), key=lambda candidate: candidate.index)
    assert run.reports[root.id].twin is None, "the root is its own twin"
    assert any(candidate.continues for candidate in others)
    for candidate in others:
        report = run.reports[candidate.id]
        assert report.twin is not None
        if candidate.continues:  # the same blueprint: its parent's twin is its own
            parent = run.reports[candidate.parents[0]]
            assert report.twin.metrics == (parent if parent.twin is None else parent.twin).metrics
            continue
        assert report.inheritance is not None
        assert report.inheritance.inherited > 0
        assert report.value("bpb") == report.twin.metrics["bpb"] != report.metrics["bpb"]
        assert report.error("bpb") == report.twin.errors["bpb"]
        assert report.twin.tokens == report.tokens.own == run.reports[root.id].tokens.own
        assert report.flops > report.twin.flops > 0.0
    for node in json.loads((whole / "lineage.json").read_text())["nodes"][1:]:
        twin = run.reports[node["id"]].twin
        assert twin is not None
        assert node["twin"]["metrics"] == twin.metrics
        assert node["twin"]["influence"] == {}


def test_a_twin_is_the_candidate_as_though_it_were_the_root(
    whole: Path, experiment: Experiment, tmp_path: Path
) -> None:
    """A run whose root is a child of another one gives that root the very figures of the child's twin."""
    run = Recorded.read(whole)
    child = max(run.candidates.values(), key=lambda candidate: candidate.index)
    twin = run.reports[child.id].twin
    assert twin is not None
    model = Blueprint.model_validate(child.blueprint)
    alone = evolve(experiment.model_copy(update={"model": model}), tmp_path / "alone", generations=0)
    (root,) = alone.lineage.nodes
    assert root.metrics["bpb"] == twin.metrics["bpb"]
    assert root.errors["bpb"] == twin.errors["bpb"]


def test_a_run_with_twins_goes_on_to_the_same_end(whole: Path, experiment: Experiment, tmp_path: Path) -> None:
    seen = iter(range(100))

    def stop(notice: Notice) -> None:
        if isinstance(notice, Training) and next(seen) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, tmp_path / "run", observer=stop)
    evolve(experiment, tmp_path / "run", resume=True)
    assert events(tmp_path / "run") == events(whole)


def report_with_twin(share: float) -> Report:
    own = known_of({"bpb": Estimate(2.0, np.array([0.1, -0.1])), "instability": 0.5})
    its = known_of({"bpb": Estimate(3.0, np.array([0.3, -0.3]))})
    return Report(id="a", status=Status.TRAINED, **own, twin=Twin(**its, share=share, tokens=1, steps=1, flops=1.0))


def test_both_is_the_mean_and_has_its_error() -> None:
    both, scratch = report_with_twin(0.5), report_with_twin(1.0)
    assert (both.value("bpb"), scratch.value("bpb")) == (2.5, 3.0)
    assert (both.value("instability"), scratch.value("instability")) == (0.5, 0.5)
    assert both.influence_of("bpb") == pytest.approx([0.2, -0.2])
    assert both.error("bpb") == pytest.approx(0.4)
    assert scratch.error("bpb") == pytest.approx(0.6)
    assert both.without_influence.error("bpb") == pytest.approx(0.4)
    assert both.without_influence.influence_of("bpb") is None


@pytest.mark.anew
def test_a_blueprint_that_cannot_be_trained_from_scratch_has_failed(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trial.Trial.run

    def diverges(self: trial.Trial, progress: object, *, keep: bool = True) -> Report:
        if not keep:
            raise DivergedError("loss nan")
        return run(self, None, keep=keep)

    monkeypatch.setattr(trial.Trial, "run", diverges)
    evolution = experiment.evolution.model_copy(update={"generations": 1, "survivors": "rest"})
    nodes = evolve(experiment.model_copy(update={"evolution": evolution}), tmp_path / "run").lineage.nodes
    assert [node.status for node in nodes] == [Status.TRAINED, Status.FAILED, Status.FAILED]
    assert nodes[1].reason == "its twin from fresh weights: loss nan"
