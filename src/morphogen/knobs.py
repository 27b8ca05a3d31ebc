"""What stands in an experiment and has no effect as the rest of it stands. Called by `foresight`.

A part says itself which of its fields nothing reads; what nothing reads of the other sections is listed here. A field
at its default is never told of: a resolved experiment spells out every one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from morphogen.blueprint.mistakes import Loc, show
from morphogen.experiment import Data, Evolution, Experiment, Train
from morphogen.figures import find
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.sparsity import ALL_KNOBS, Sparse
from morphogen.parts.contract.part import Part
from morphogen.sections.values import changed
from morphogen.selection.parents import SELECTORS

#: Field of a part -> the field that decides whether it is read.
DECIDED_BY: Mapping[str, str] = {
    **dict.fromkeys(ALL_KNOBS, "sparsity"),
    **dict.fromkeys(("rope_theta", "rope_factor", "rope_context"), "rope"),
    **dict.fromkeys(("selector_topk", "selector_heads", "selector_dim", "selector_loss"), "selector"),
    "gating_op": "gating_pos",
    "shared_hidden": "shared",
    "capacity_factor": "drop_policy",
    "dt_rank": "kind",
    "head_dim": "kind",
    "hidden": "router_type",
    "bottleneck": "adapter",
    **dict.fromkeys(("top_k", "noise", "pooling", "balance", "router_lr"), "router"),
    "offload": "freeze",
}
#: What walks from the root do not read, and what copies of their parents do not.
UNSELECTED = (
    "parent_selection",
    "survival",
    "topk_keep",
    "structural_elite_k",
    "survivors",
    "adaptive_mutation",
    "crossover_prob",
)
EDITING = (
    "mutation_weights",
    "adaptive_mutation",
    "templates",
    "template_mutation_prob",
    "crossover_prob",
    "screening",
    "repeat",
)
PROMOTION = tuple(name for name in Evolution.model_fields if name.startswith("promotion_") and name != "promotion_prob")


class Remark(NamedTuple):
    """Something to be told of a place in an experiment. refused: whether its author must have meant something else."""

    loc: Loc
    said: str
    refused: bool = False


def knobs(experiment: Experiment) -> Iterator[Remark]:
    """What has no effect, and what cannot have been meant."""
    for i, block in enumerate(experiment.model.blocks):
        for _, path, part in block.parts():
            steps = tuple(int(step) if step.isdigit() else step for step in path.split("."))
            yield from _of_part(part, ("model", "blocks", i, *steps))
    for i, loop in enumerate(experiment.model.recurrences):
        yield from _of_part(loop, ("model", "recurrences", i))
    if (places := experiment.model.emb.positions) is not None:
        for loc, length in _lengths(experiment.data):
            if length > places:
                said = f"is {length}, but model.emb.positions is {places}: no later place is learned"
                yield Remark(loc, said, True)
    yield from _of_training(experiment.train, experiment.data, experiment.evolution)
    yield from _of_anchoring(experiment.train, experiment.evolution, grows=bool(experiment.model.growth))
    yield from _of_search(experiment.evolution)


def _lengths(data: Data) -> Iterator[tuple[Loc, int]]:
    """Where lengths of sequences stand, of training and of probes."""
    yield ("data", "seq_len"), data.seq_len
    for field in ("shards", "eval_shards"):
        for i, shard in enumerate(dict(data)[field]):
            yield from ((("data", field, i, "lengths", j), length) for j, length in enumerate(shard.lengths))


def _of_part(part: Part, loc: Loc) -> Iterator[Remark]:
    values = dict(part)
    unread = part.unread()
    if isinstance(part, Sparse) and "sparsity" not in part.model_fields_set:
        for name in sorted(ALL_KNOBS & part.model_fields_set):
            said = f"is {show(values[name])}, but there is no sparsity, so that every token before is seen"
            yield Remark((*loc, name), f"{said}; add one that reads it, such as sparsity: {_reads(name)}", True)
        unread -= ALL_KNOBS
    if isinstance(part, Attention) and part.rope == "yarn" and part.rope_factor is None:
        said = "yarn extends rope_context by rope_factor, which is not given; give it, or use rope: standard, which"
        yield Remark((*loc, "rope"), f"{said} is what yarn without a factor was in the older system", True)
    for name in sorted(unread & changed(part)):
        decider = DECIDED_BY.get(name, "")
        why = f"with {decider} {show(values[decider])}" if decider in values else "as the rest of the part stands"
        yield Remark((*loc, name), f"is {show(values[name])}, but has no effect {why}")
    for field, value in values.items():
        for i, inner in enumerate(value if isinstance(value, tuple) else ()):
            if isinstance(inner, Part):
                yield from _of_part(inner, (*loc, field, i))


def _reads(knob: str) -> str:
    """A pattern that reads a knob."""
    patterns = {"sliding_window": "sliding", "global_stride": "local_global", "dilation": "dilated"}
    return patterns.get(knob, "block")


def _of_training(train: Train, data: Data, evolution: Evolution) -> Iterator[Remark]:
    for name in ("lr", "weight_decay"):
        own = dict(train.optimizer)[name]
        if own is not None and name in changed(train):
            said = f"is {show(dict(train)[name])}, but has no effect: optimizer.{name} is {show(own)}"
            yield Remark(("train", name), said)
    if train.init_checkpoint is not None and evolution.weight_inheritance == "scratch":
        yield Remark(("train", "init_checkpoint"), "has no effect with evolution.weight_inheritance 'scratch'")
    if train.init_checkpoint is not None and evolution.twin_share:
        said = f"is {show(evolution.rank_by)}, but the root begins with train.init_checkpoint, and twins with nothing"
        yield Remark(("evolution", "rank_by"), said, True)
    if train.schedule != "wsd" and "decay_share" in changed(train):
        said = f"is {show(train.decay_share)}, but has no effect with schedule {train.schedule!r}"
        yield Remark(("train", "decay_share"), said)
    if data.healing_shards and not data.healing_tokens:
        yield Remark(("data", "healing_shards"), "have no effect: healing_tokens is 0")


def _of_anchoring(train: Train, evolution: Evolution, *, grows: bool) -> Iterator[Remark]:
    """What means against forgetting have nothing to hold on to."""
    loc, anchoring = ("train", "anchoring"), train.anchoring
    inherits = evolution.weight_inheritance != "scratch"
    if (rehearsal := anchoring.rehearsal) is not None and rehearsal.source == "data":
        for name in sorted(changed(rehearsal) & {"every", "temperature"}):
            said = f"is {show(dict(rehearsal)[name])}, but has no effect with source 'data'"
            yield Remark((*loc, "rehearsal", name), said)
    if rehearsal is not None and rehearsal.source == "generations" and rehearsal.every is None and not inherits:
        said = (
            "samples before the first step alone, which with evolution.weight_inheritance 'scratch' is that of weights"
        )
        yield Remark((*loc, "rehearsal"), f"{said} that have learnt nothing, so that it has no effect; give 'every'")
    if anchoring.freeze_expand_tune is not None and not inherits and not grows:
        said = "has no effect with evolution.weight_inheritance 'scratch' and without growth rules: nothing is old"
        yield Remark((*loc, "freeze_expand_tune"), said)


def _of_search(evolution: Evolution) -> Iterator[Remark]:
    selection, rungs = evolution.parent_selection, evolution.rungs
    breeds = f"with parent_selection {selection!r}"
    foreign = selection not in SELECTORS  # a rule of another package, which may read anything that its pool has
    read: list[tuple[bool, tuple[str, ...], str]] = [
        (foreign or selection == "tournament", ("tournament_size",), breeds),
        (foreign or selection == "downsampled_lexicase", ("downsample",), breeds),
        (foreign or selection.endswith("lexicase"), ("lexicase_cases",), breeds),
        (foreign or selection == "map_elites", ("map_elites",), breeds),
        (selection == "map_elites", ("archive_max_elites",), breeds),
        (selection != "map_elites", ("survival", "topk_keep"), f"{breeds}, which keeps its own archive"),
        (rungs == "asha", ("eta", "min_tokens", "max_tokens"), f"with rungs {rungs!r}"),
        (rungs == "fixed", ("rung1_tokens", "rung2_tokens"), f"with rungs {rungs!r}"),
        (evolution.promotion_prob > 0.0, PROMOTION, "with promotion_prob 0"),
        (
            evolution.adaptive_mutation,
            ("adaptive_mutation_eta", "adaptive_mutation_min_weight", "adaptive_mutation_max_weight"),
            "with adaptive_mutation false",
        ),
        (evolution.screening == "model", ("screening_draws", "screening_share"), "with screening 'none'"),
        (evolution.baseline == "none", ("screening",), f"with baseline {evolution.baseline!r}"),
        (evolution.baseline != "random", UNSELECTED, f"with baseline {evolution.baseline!r}"),
        (
            _measured(evolution, (*evolution.objectives, *evolution.constraints)),
            ("screening",),
            "where objectives and constraints are costs, which nobody has to predict",
        ),
        (_measured(evolution, evolution.objectives), ("repeat",), "where objectives are costs, which no seed changes"),
        (
            evolution.weight_inheritance == "parent",
            ("rank_by", "survivors"),
            f"with weight_inheritance {evolution.weight_inheritance!r}",
        ),
        (evolution.goes_on, ("inherit_optimizer",), "where nobody goes on from weights of this run"),
        (
            evolution.mutation_weights.get("template_mutation") != 0.0,
            ("templates", "template_mutation_prob"),
            "with mutation_weights.template_mutation 0",
        ),
        (evolution.crossover_prob > 0.0, ("crossover",), "with crossover_prob 0"),
        (
            evolution.edits,
            EDITING,
            "in the control without edits",
        ),
    ]
    left = changed(evolution)
    for is_read, names, why in read:
        for name in () if is_read else (name for name in names if name in left):
            left.discard(name)
            yield Remark(("evolution", name), f"is {show(dict(evolution)[name])}, but has no effect {why}")
    if evolution.structural_gates == "reject" and all(n <= (name == "layers") for name, n in evolution.gates.items()):
        yield Remark(("evolution", "structural_gates"), "is 'reject', but has no effect: no gate asks for anything")


def _measured(evolution: Evolution, names: Iterable[str]) -> bool:
    """Whether any of these figures is more than what follows from a blueprint."""
    made: dict[str, bool] = {}

    def measured(name: str) -> bool:
        return made[name] if name in made else (figure := find(name)) is None or figure.sort != "cost"

    for name, composite in evolution.composite_metrics.items():  # made of figures, and of those named before
        made[name] = any(measured(part) for part in composite.names)
    return any(measured(name) for name in names)
