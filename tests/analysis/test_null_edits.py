"""An edit that changes nothing, a renamed gene, is told from the root as often as the level of the noise says."""

import math
from pathlib import Path

import numpy as np
import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Candidate, Job, Report, Stage, Status
from morphogen.data.prepare import PreparedData, prepare
from morphogen.experiment import Experiment
from morphogen.figures import Noise
from morphogen.run import load
from morphogen.selection.noise import tolerances
from morphogen.training.trial import run_surrogate
from tiny import write_config

PAIRS = 200


def trained(experiment: Experiment, prepared: PreparedData, folder: Path, gene: str, seed: int) -> Report:
    """The root with its only block called `gene`, from scratch: the name decides what its weights begin with."""
    block = experiment.model.blocks[0].model_copy(update={"id": gene})
    model: Blueprint = experiment.model.model_copy(update={"blocks": (block,)})
    job = Job(
        experiment=experiment.model_dump(mode="json"),
        candidate=Candidate(id=f"{gene}-{seed}", index=0, generation=0, blueprint=model.to_json()),
        parents=(),
        ancestors=(),
        stages=(Stage(rung=2, budget_tokens=1024),),
        seed=seed,
        run_dir=str(folder),
        device="cpu",
        repeat=1,  # leaves no checkpoint
    )
    report = run_surrogate(job, prepared=prepared)
    assert report.status is Status.TRAINED, report.reason
    return report


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_a_renamed_gene_is_told_apart_no_more_and_no_less_often_than_the_level_says(tmp_path: Path) -> None:
    """On the same batches; how far trainings differ by luck is taken from the other pairs, which is nearly all of it:
    this shows that such differences are spread as the rule takes them to be, not that a run's own setting is right."""
    experiment = load(write_config(tmp_path, **{"eval_tokens: 128": "eval_tokens: 2048"}))
    prepared = prepare(experiment.data)
    pairs = [
        [trained(experiment, prepared, tmp_path, gene, seed) for gene in ("b0", "renamed")] for seed in range(PAIRS)
    ]
    apart = np.array([one.metrics["bpb"] - other.metrics["bpb"] for one, other in pairs])
    of_text = np.array([_tolerance(pair, Noise(z=1.0, training=0.0)) for pair in pairs])
    values = [one.metrics["bpb"] for one, _ in pairs]
    told, luck = 0, np.square(apart) - np.square(of_text)
    for k, pair in enumerate(pairs):
        others = float(np.delete(luck, k).mean())
        noise = Noise(z=1.96, training=math.sqrt(max(0.0, others) / 2.0) / float(np.mean(values)))
        told += abs(apart[k]) > _tolerance(pair, noise)
    unpaired = [math.hypot(*(one.errors["bpb"] for one in pair)) for pair in pairs]
    print(
        f"sd of a difference {np.std(apart):.5f}, of one value {np.std(values):.5f}; error of the text paired "
        f"{np.mean(of_text):.5f}, unpaired {np.mean(unpaired):.5f}; told apart {told} of {PAIRS}"
    )
    assert 3 <= told <= 18  # 99 % of draws of 200 at 5 %


def _tolerance(pair: list[Report], noise: Noise) -> float:
    found = tolerances(pair, ["bpb"], noise)
    assert found is not None
    return float(found[0, 0, 1])
