"""What is checked of an experiment before anything is trained: names that exist, and checkpoints that can be read."""

from morphogen.blueprint.schema import Blueprint
from morphogen.cost import Step, costs
from morphogen.data.prepare import PreparedData
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.search.availability import check_figures
from morphogen.search.rungs import check_thresholds
from morphogen.training.start import from_checkpoint
from morphogen.variation.operator import check_weights
from morphogen.variation.template import resolve_templates


def check_settings(experiment: Experiment, model: Blueprint) -> None:
    """What the file alone can tell. InputError for an objective or a score weight that nothing measures, an operator
    or a cost that does not exist. `model` is the experiment's, its vocabulary filled in."""
    evolution = experiment.evolution
    found = costs(model, experiment.data.seq_len, Step.of(experiment.train, experiment.data))
    check_weights(evolution.mutation_weights)
    resolve_templates(evolution.templates)
    check_thresholds(evolution, found)
    _check_gates_reached(experiment)
    check_figures(experiment, model)


def _check_gates_reached(experiment: Experiment) -> None:
    """InputError for gates after a rung 1 that trains nothing: a rung shorter than a batch is left out."""
    evolution, least = experiment.evolution, experiment.data.seq_len * experiment.data.batch_size
    if evolution.rungs == "fixed" and evolution.rung1_tokens < least:
        given = {
            "evolution.rung1_gates": len(evolution.rung1_gates) > 0,
            "train.ppl_stop_threshold": experiment.train.ppl_stop_threshold is not None,
        }
        for field in (name for name, is_given in given.items() if is_given):
            raise InputError(
                f"{field}: gates stand after rung 1, but evolution.rung1_tokens is {evolution.rung1_tokens}, less than "
                f"one batch of {least}, so that there is no rung 1"
            )


def check_possible(experiment: Experiment, prepared: PreparedData) -> None:
    """What can be known before anything is trained: `check_settings`, and InputError for a checkpoint to start from
    that is missing, damaged or of another tokenizer, or one that would not be read."""
    train, evolution = experiment.train, experiment.evolution
    check_settings(experiment, experiment.model)
    if train.init_checkpoint is not None:
        from_checkpoint(experiment.model, experiment, prepared, seed=0)
    elif evolution.weight_inheritance == "init":
        raise InputError("train.init_checkpoint: not set, but evolution.weight_inheritance is 'init'")
