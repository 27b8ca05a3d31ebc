"""What is checked of an experiment before it is trained: names, gates, checkpoints. Called by `run`, `validate`."""

from typing import TYPE_CHECKING, NamedTuple

from morphogen.availability import check_figures
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import read
from morphogen.cost import Step, costs
from morphogen.errors import InputError
from morphogen.experiment import Experiment, Train
from morphogen.foresight import foreseen, late_growth, nominal
from morphogen.knobs import Remark
from morphogen.reading import dotted, experiment_in, holds_templates, placed, said_of
from morphogen.search.rungs import check_thresholds
from morphogen.variation.operator import check_weights
from morphogen.variation.template import read_templates, resolve_templates

if TYPE_CHECKING:
    from morphogen.data.prepare import PreparedData


def check_settings(experiment: Experiment, model: Blueprint) -> None:
    """What the file alone can tell. InputError for an objective or a score weight that nothing measures, an operator
    or a cost that does not exist. `model` is the experiment's, its vocabulary filled in."""
    evolution = experiment.evolution
    found = costs(model, experiment.data.seq_len, Step.of(experiment.train, experiment.data.batch_size))
    check_weights(evolution.mutation_weights)
    resolve_templates(evolution.templates)
    check_thresholds(evolution, found)
    _check_gates_reached(experiment)
    check_figures(experiment, model)


def _check_gates_reached(experiment: Experiment) -> None:
    """InputError for gates after a rung 1 that trains nothing: a rung shorter than a batch is left out."""
    evolution, least = experiment.evolution, experiment.tokens_per_step
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


class Validated(NamedTuple):
    """A file without mistakes: what it is, in words; its parameters (None where it is no experiment, or its vocabulary
    is not known here); what is odd about it, a line each; how it trains, of an experiment."""

    said: str
    parameters: int | None
    notes: tuple[str, ...]
    train: Train | None = None


def validated(file: str) -> Validated:
    """A file of an experiment, or of templates, examined as far as that goes without reading a text or training a
    tokenizer. InputError with one line, file, line and column for every mistake."""
    document = read(file)
    if holds_templates(document):
        count = len(read_templates(file))
        return Validated(f"ok, {count} templates, for evolution.templates of an experiment", None, ())
    experiment = experiment_in(document, file)
    with placed(file):
        model, known, remarks = examined(experiment)
    parameters = int(costs(model, experiment.data.seq_len)["params"])
    least = "" if known else ", without those of a vocabulary whose size only the hub knows"
    notes = tuple(said_of(file, remarks))
    return Validated(f"ok, {parameters:,} parameters{least}", parameters if known else None, notes, experiment.train)


def examined(experiment: Experiment) -> tuple[Blueprint, bool, list[Remark]]:
    """The blueprint of a located experiment with its vocabulary as large as the file says, whether that is known, and
    what is odd. InputError, with a line each, for all that can be known to be wrong before any text is read."""
    model, known = nominal(experiment)
    remarks = [*foreseen(experiment, model, whole=known), *late_growth(experiment)]
    refused = [remark for remark in remarks if remark.refused]
    wrong = [f"{dotted(remark.loc)}: {remark.said}" for remark in refused]
    try:
        if not any(remark.loc == ("evolution", "templates") or "experts" in remark.loc for remark in refused):
            check_settings(experiment, model)
    except InputError as error:
        wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return model, known, remarks


def check_possible(experiment: Experiment, prepared: "PreparedData") -> None:
    """What can be known before anything is trained: `check_settings`, and InputError for a checkpoint to start from
    that is missing, damaged or of another tokenizer, or one that would not be read."""
    train, evolution = experiment.train, experiment.evolution
    check_settings(experiment, experiment.model)
    if train.init_checkpoint is not None:
        from morphogen.training.start import from_checkpoint  # brings torch, of which the rest has no need

        from_checkpoint(experiment.model, experiment, prepared, seed=0)
    elif evolution.weight_inheritance == "init":
        raise InputError("train.init_checkpoint: not set, but evolution.weight_inheritance is 'init'")
