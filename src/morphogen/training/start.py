"""What a candidate starts from: its parents' weights, `train.init_checkpoint`, or fresh ones."""

from dataclasses import replace
from pathlib import Path

from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, Tokens
from morphogen.data.prepare import PreparedData
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint, load_optimizer
from morphogen.inherit.descent import Inherited, Moments, splice_job, spliced_at_once
from morphogen.inherit.merging import Model
from morphogen.inherit.plan import Plan, plan
from morphogen.inherit.provenance import Provenance, with_tokens
from morphogen.network import initial_state
from morphogen.paths import user_path

PLACE = "train.init_checkpoint"
#: What the origin of weights is called that come from it.
NAME = "init_checkpoint"


def starting_weights(job: Job, experiment: Experiment, prepared: PreparedData, seed: int, root_seed: int) -> Inherited:
    """What the candidate starts from. root_seed: of the weights that the run's root began with, which merges of
    differences read.

    InputError or RunError for weights that cannot be used, as `splice_job`, and for those of another tokenizer.
    """
    evolution, path = experiment.evolution, experiment.train.init_checkpoint
    mode, with_moments = evolution.weight_inheritance, evolution.keeps_moments
    if job.before is not None:
        return _own_weights(job, job.before, with_moments=with_moments)
    if mode == "init" and path is None:
        raise InputError(f"{PLACE}: not set, but evolution.weight_inheritance is 'init'")
    if mode == "parent" and job.parents:

        def base() -> Model:
            root = experiment.model.with_vocab(Blueprint.model_validate(job.candidate.blueprint).context().vocab)
            if path is None:
                return Model(root, initial_state(root, root_seed))
            return Model(root, from_checkpoint(root, experiment, prepared, root_seed).state)

        return splice_job(job, seed, with_moments=with_moments, tokenizer=prepared.tokenizer_digest, base=base)
    if mode == "scratch" or path is None:
        return splice_job(job.replace(parents=()), seed)
    return from_checkpoint(Blueprint.model_validate(job.candidate.blueprint), experiment, prepared, seed)


def from_checkpoint(blueprint: Blueprint, experiment: Experiment, prepared: PreparedData, seed: int) -> Inherited:
    """The weights in `train.init_checkpoint`, carried to `blueprint`; InputError where they mean other tokens."""
    path = user_path(experiment.train.init_checkpoint or "", PLACE)
    state, theirs, metadata = load_checkpoint(path, measured=True)
    provenance = Provenance.from_metadata(metadata, path)
    drawn = plan(blueprint, [theirs])
    if provenance.tokenizer != prepared.tokenizer_digest:
        drawn = _across(drawn, blueprint, theirs, provenance, experiment, prepared)
    done = spliced_at_once(drawn, blueprint, [state], [NAME], seed)
    behind = provenance.tokens
    begun = Tokens(own=0, lineage=behind.lineage, unique=behind.unique)
    return replace(done, begun=begun, memory=provenance.remembered(path), donors=provenance.donors)


def _across(
    drawn: Plan,
    blueprint: Blueprint,
    theirs: Blueprint,
    provenance: Provenance,
    experiment: Experiment,
    prepared: PreparedData,
) -> Plan:
    """The plan of weights that another tokenizer, or nobody knows which, was used with; never an exact one."""
    place, remap = f"{PLACE} {experiment.train.init_checkpoint}", experiment.train.init_tokenizer == "remap"
    rows, their_rows = blueprint.context().vocab, theirs.context().vocab
    if provenance.tokenizer is None:
        if remap:
            raise InputError(f"{place}: it does not say its tokenizer, so that train.init_tokenizer cannot be 'remap'")
        if rows != their_rows:
            raise InputError(
                f"{place}: it has {their_rows} tokens and does not say its tokenizer, expected the {rows} of "
                f"data.tokenizer {prepared.tokenizer!r}"
            )
        note = f"{NAME} does not say which tokenizer it was trained with"
        return drawn.model_copy(update={"exact": False, "notes": (*drawn.notes, note)})
    was = f"{provenance.name!r} ({provenance.tokenizer}, {their_rows} tokens)"
    now = f"{prepared.tokenizer!r} ({prepared.tokenizer_digest}, {rows} tokens)"
    if not remap:
        raise InputError(
            f"{place}: its weights were trained with the tokenizer {was}, but data.tokenizer is {now}; use the same "
            "one, or map token by token with train.init_tokenizer: remap"
        )
    old = Vocabulary.unpack(provenance.vocabulary, place)
    new = Vocabulary.unpack(prepared.vocabulary(), f"vocabulary {prepared.vocabulary_path}")
    index = [i if i < their_rows else -1 for i in new.index_in(old, rows)]
    carried = sum(i >= 0 for i in index)
    return with_tokens(drawn, index, f"tokenizer {was} became {now}: {carried} of {rows} tokens carried")


def _own_weights(job: Job, before: Report, *, with_moments: bool) -> Inherited:
    """Those that an earlier job of the same candidate left."""
    if before.checkpoint is None or before.inheritance is None:
        raise InputError(f"candidate {before.id} goes on from rung {before.rung}, of which no checkpoint is left")
    path = Path(job.run_dir) / before.checkpoint
    state, blueprint, metadata = load_checkpoint(path)
    moments = None
    if with_moments:
        of, young = load_optimizer(path, blueprint)
        moments = Moments(of=of, fresh={}, young=young)
    provenance = Provenance.from_metadata(metadata, path)
    return Inherited(
        state,
        before.inheritance,
        moments,
        provenance.begun,
        memory=provenance.remembered(path),
        donors=provenance.donors,
    )
