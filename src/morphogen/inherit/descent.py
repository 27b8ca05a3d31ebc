"""What a candidate starts from: its parents' weights through the edits that made it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from morphogen.arguments import whole
from morphogen.blueprint.diff import apply
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import DonorLayer, Edit, Inheritance, Job, Tokens
from morphogen.errors import CandidateError, InputError, first_line
from morphogen.inherit.asked import check_asked, read_parents
from morphogen.inherit.checkpoint import YOUNG, Young, load_checkpoint, load_optimizer
from morphogen.inherit.merging import Model, merged
from morphogen.inherit.plan import Plan, plan
from morphogen.inherit.provenance import NO_TOKENS, Provenance, check_tokenizers
from morphogen.inherit.splice import Spliced, StateDict, from_parent, splice
from morphogen.network import initial_state
from morphogen.ops.ambient import as_usual


@dataclass(frozen=True)
class Moments:
    """Optimizer state that came along with weights.

    of: kind -> parameter -> tensor. fresh: where the entries of a parameter are new ones; parameters that were carried
    whole are not in it. young: which entries have had a rate of their own, and have it yet, also while they warm up.
    """

    of: Mapping[str, StateDict]
    fresh: Mapping[str, Tensor]
    young: Sequence[Young] = ()

    @classmethod
    def carried(cls, spliced: Spliced, rates: Sequence[Mapping[str, Any]] = ()) -> "Moments":
        """Those that a splice has carried along with the weights.

        rates: what is known of the rate of entries that have one of their own, whose places went the way of moments:
        `YOUNG` and a number.
        """
        fresh = {name: ~mark.carried for name, mark in spliced.marks.items() if mark.carried is not None}
        of = dict(spliced.moments)
        masks = [of.pop(f"{YOUNG}{i}", {}) for i in range(len(rates))]
        return cls(of, fresh, list(zip(rates, masks, strict=True)))


@dataclass(frozen=True)
class Inherited:
    """Weights, the report of how they came about, and the optimizer's moments where these were asked for.

    begun: tokens behind the checkpoint that the lineage began with, from outside of the run. new: where the entries of
    a parameter are new ones, of those that are not carried whole. memory: what the rules of growth of the first parent
    remember. donors: layers of other models as the parents' checkpoints have them.
    """

    state: StateDict
    report: Inheritance
    moments: Moments | None = None
    begun: Tokens = NO_TOKENS
    new: Mapping[str, Tensor] = field(default_factory=dict)
    memory: str = ""
    donors: tuple[DonorLayer, ...] = ()


@as_usual()
def inherit(
    child: Blueprint,
    parents: Sequence[tuple[Blueprint, Mapping[str, Tensor]]],
    *,
    edits: Sequence[Edit] = (),
    sources: Mapping[str, int] | None = None,
    names: Sequence[str] = ("0", "1"),
    tokenizers: Sequence[str | None] = (),
    base: tuple[Blueprint, Mapping[str, Tensor]] | None = None,
    seed: int = 0,
) -> tuple[StateDict, Inheritance]:
    """Splices a child's weights from its parents'. The parents' tensors are not touched.

    Args:
        child: The architecture to fill. Where its vocabulary is null, it takes its first parent's.
        parents: None, one or two, each a blueprint with its state dict. Without any, all of it is new.
        edits: Those that made the child. Weights are carried through them one by one, so that a chain of exact edits,
            and of the steps of a compound one, is exact. Without them they are carried from the parents to the child at
            once.
        sources: Gene id of a block to the position of the parent that it comes from, where both have it.
        names: Of the parents, in the report.
        tokenizers: Of the parents, by digest (`tokenizer` in a checkpoint's metadata); None where it is not known.
        base: What the parents were trained from, for edits that merge differences from it.
        seed: Of what is new.

    Returns:
        The child's state dict, on the CPU and in the precision of its parent (of two, the first), and a report of what
        was carried, resized and begun afresh.

    Raises:
        InputError: A state is not its blueprint's, the parents' tokenizers differ, the edits do not lead to the child,
            or an argument is not what it can be.
    """
    check_asked(child, parents, edits, names, sources or {})
    seed = whole("seed", seed)
    check_tokenizers(tokenizers, [f"parent {name}" for name in names])
    full = read_parents(parents)
    if child.emb.vocab is None and full:
        child = child.with_vocab(full[0][0].context().vocab)
    if edits:
        loaded = [(blueprint, from_parent(dict(state), which)) for which, (blueprint, state) in enumerate(full)]
        began = (lambda: Model(*base)) if base is not None else None
        spliced, report = splice_edits(child, loaded, edits, seed, names, began)
        return spliced.state, report
    drawn = plan(child, [blueprint for blueprint, _ in full], sources)
    done = spliced_at_once(drawn, child, [state for _, state in full], names, seed)
    return done.state, done.report


def spliced_at_once(
    drawn: Plan, child: Blueprint, states: Sequence[Mapping[str, Tensor]], names: Sequence[str], seed: int
) -> Inherited:
    """One plan carried out on its parents' states, which stay as they are, and the report."""
    spliced = splice(drawn, [from_parent(dict(state), which) for which, state in enumerate(states)], seed)
    report = spliced.report(child, drawn.exact, drawn.notes, _entries(drawn), names)
    return Inherited(spliced.state, report, new=Moments.carried(spliced).fresh)


def splice_job(
    job: Job,
    seed: int,
    *,
    with_moments: bool = False,
    tokenizer: str | None = None,
    base: Callable[[], Model] | None = None,
) -> Inherited:
    """What a candidate starts from; where these are wanted, with its parents' moments, and the rates of what is young.

    The recorded edits are made one after another and each is spliced, so that a chain of exact edits is exact.
    tokenizer: the run's, by digest. base: what the run's weights began as. InputError when a parent's checkpoint is
    missing, damaged, or of another blueprint or tokenizer; CandidateError when its edits lead elsewhere.
    """
    target = Blueprint.model_validate(job.candidate.blueprint)
    if not job.parents:
        state = initial_state(target, seed)
        fresh = sum(tensor.numel() for tensor in state.values())
        return Inherited(state, Inheritance(inherited=0, resized=0, fresh=fresh, exact=False, notes=("no parent",)))
    loaded, rates = [], list[Mapping[str, Any]]()
    begun, memory, donors = NO_TOKENS, "", tuple[DonorLayer, ...]()
    for which, parent in enumerate(job.parents):
        path = Path(job.run_dir) / parent.checkpoint
        state, blueprint, metadata = load_checkpoint(path)
        provenance = Provenance.from_metadata(metadata, path)
        check_tokenizers([tokenizer, provenance.tokenizer], ["this run", str(path)])
        memory = memory if which else provenance.remembered(path)
        donors += provenance.donors
        begun = max(begun, provenance.begun, key=lambda tokens: tokens.lineage)
        if blueprint != Blueprint.model_validate(parent.blueprint):
            raise InputError(f"{path}: holds the weights of another blueprint than candidate {parent.id}")
        moments, young = load_optimizer(path, blueprint) if with_moments else (None, [])
        for numbers, masks in young:
            assert moments is not None
            moments[f"{YOUNG}{len(rates)}"] = dict(masks)
            rates.append(numbers)
        loaded.append((blueprint, from_parent(state, which, moments, given=True)))
    try:
        names = [parent.id for parent in job.parents]
        spliced, report = splice_edits(target, loaded, job.candidate.edits, seed, names, base)
    except InputError as error:
        raise CandidateError(f"candidate {job.candidate.id}: {error}") from None
    carried = Moments.carried(spliced, rates)
    return Inherited(spliced.state, report, carried if with_moments else None, begun, carried.fresh, memory, donors)


def splice_edits(
    target: Blueprint,
    loaded: Sequence[tuple[Blueprint, Spliced]],
    edits: Sequence[Edit],
    seed: int,
    names: Sequence[str],
    base: Callable[[], Model] | None = None,
) -> tuple[Spliced, Inheritance]:
    """Splice through edits, from the parents called `names` to `target`; InputError where the edits lead elsewhere.

    base: what the parents' weights began as, for edits that merge what was learnt since.
    """
    exact, dropped = True, 0
    notes: list[str] = []
    here, spliced = loaded[0]
    for step, edit in enumerate(one for given in edits for one in given.single()):
        following = _edited(here, edit)
        if edit.merging is not None:
            here, spliced = merged(edit.merging, loaded, following, base)
            if here != following:
                raise InputError("the recorded merge leads to another blueprint")
            exact, notes = False, [*notes, f"weights of two parents, merged by {edit.merging.method}"]
            continue
        if edit.sources:
            others, parts = [blueprint for blueprint, _ in loaded], [weights for _, weights in loaded]
            drawn = plan(following, others, edit.sources)
        else:
            drawn, parts = plan(following, [here]), [spliced]
        spliced = splice(drawn, parts, seed + step)
        exact, notes, here = exact and drawn.exact, [*notes, *drawn.notes], following
        dropped += _entries(drawn)
    if here != target:
        raise InputError("the recorded edits do not lead to the blueprint")
    return spliced, spliced.report(target, exact, notes, dropped, names)


def _edited(blueprint: Blueprint, edit: Edit) -> Blueprint:
    try:
        return apply(blueprint, edit.changes)
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # anything may stand in a recorded change
        said = first_line(error)
        raise InputError(f"edit {edit.operator} does not fit blueprint {blueprint.name!r}: {said}") from None


def _entries(drawn: Plan) -> int:
    return sum(item.entries for item in drawn.dropped)
