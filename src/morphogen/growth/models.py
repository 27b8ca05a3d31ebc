"""Growing a model by hand, from Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from morphogen.arguments import expected, whole
from morphogen.blueprint.growth import Action, CrossExperts, GrowthAction, MergeExperts, PruneExperts, SplitExperts
from morphogen.blueprint.mistakes import what
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError, OperatorError, unknown
from morphogen.growth.actions import act
from morphogen.growth.morphogenesis import Experts, mixtures
from morphogen.growth.recasting import Situation, recast
from morphogen.growth.surgery import operate
from morphogen.network import LanguageModel, assemble
from morphogen.ops.ambient import as_usual
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.registry import TAG
from morphogen.variation.making import Chosen


class _Asked(Frozen):
    do: GrowthAction


@as_usual()
def grow(
    model: LanguageModel,
    action: GrowthAction | Mapping[str, Any],
    *,
    seed: int = 0,
    experts: Mapping[str, Sequence[int]] | None = None,
) -> LanguageModel:
    """Gives a grown copy of a model; the model itself stays as it is.

    Where the action is exact the copy computes the same function.

    >>> deeper = grow(model, {"action": "deepen", "layers": 4})

    Args:
        model: Any model of morphogen's, on any device.
        action: What is done, as in a growth rule's `do`.
        seed: Of what is drawn: new weights, and what to act on where that is not said.
        experts: Id of a block to experts of its mixture, by their numbers in the stack, for actions on experts; needed
            by those that prune, merge or cross, as nothing is known of their usage here. Of two that merge the first
            takes the second in, evenly; of two that cross the first becomes a blend of both. Of one that goes by
            `chooser: merge` the nearest other one takes it in.

    Returns:
        Another model, on the same device, in the same mode and precision. What was frozen by `requires_grad` stays so.

    Raises:
        InputError: The model is none of ours, the action is none, or names blocks or experts that the model does not
            have.
        OperatorError: There is nothing for it to do.
    """
    expected("model", model, LanguageModel, "one that is wrapped or compiled is grown before that")
    wanted, blueprint, seed = _read(action), model.blueprint, whole("seed", seed)
    chosen = _checked(blueprint, wanted, experts or {})
    grown = act(blueprint, wanted, np.random.default_rng(seed), chosen)
    if grown is None:
        raise OperatorError(f"{wanted.action}: there is nothing for it to do in blueprint {blueprint.name!r}")
    nothing_seen = Situation(model, Experts.of(blueprint, ()), 0, torch.empty(0, 0, dtype=torch.long))
    state = recast(wanted, chosen, nothing_seen, {"": model.state_dict()})[""]
    done = operate(grown, blueprint, state, {}, seed)
    other = assemble(grown.blueprint, done.state).to(model.emb.weight.device)
    _freeze_alike(other, model)
    other.recompute, other.eval_steps = model.recompute, model.eval_steps
    other.set_progress(model.progress)
    return other.train(model.training)


def _read(action: GrowthAction | Mapping[str, Any]) -> GrowthAction:
    expected("grow: action", action, (Action, Mapping), "such as {'action': 'deepen', 'layers': 2}")
    try:
        return _Asked(do=action if isinstance(action, Action) else dict(action)).do
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        steps = [str(step) for step in first["loc"][1:] if not str(step).startswith(TAG)]
        place = ".".join(steps) or "action"
        raise InputError(f"grow: {place}: {what(_Asked, first, first['loc'])}") from None


def _freeze_alike(grown: LanguageModel, model: LanguageModel) -> None:
    """Parameters that are frozen in the model are frozen in what it grew into; the same ones by gene, wherever."""
    ours, theirs = dict(grown.named_parameters()), dict(model.named_parameters())
    frozen = {
        (gene.key, name)
        for full, (gene, name, _) in specs(model.blueprint).items()
        if full in theirs and not theirs[full].requires_grad
    }
    for full, (gene, name, _) in specs(grown.blueprint).items():
        if full in ours and (gene.key, name) in frozen:
            ours[full].requires_grad_(False)


def _checked(blueprint: Blueprint, action: GrowthAction, experts: Mapping[str, Sequence[int]]) -> Chosen:
    """The experts that are named, all of them there. Two where they merge or cross."""
    ids, found = {block.id for block in blueprint.blocks}, mixtures(blueprint)
    for block in dict(action).get("blocks", ()):
        if block not in ids:
            raise InputError(unknown(f"{action.action}: block", block, ids))
    if experts and not isinstance(action, SplitExperts | PruneExperts | MergeExperts | CrossExperts):
        raise InputError(f"{action.action}: acts on no experts of one's own choice")
    pairs = isinstance(action, MergeExperts | CrossExperts)
    if pairs and not experts:
        raise InputError(f"{action.action}: expected two experts of a block")
    if isinstance(action, PruneExperts):
        if action.chooser == "gate_norm":
            raise InputError(f"{action.action}: chooser: gate_norm is measured in training alone; got it by hand")
        if not any(experts.values()):
            raise InputError(f"{action.action}: expected the experts of a block that are to go")
    for block, numbers in experts.items():
        if block not in found:
            raise InputError(unknown(f"{action.action}: block with a mixture of experts", block, found))
        if pairs and len(numbers) != 2:
            raise InputError(f"{action.action}: got {len(numbers)} experts of block {block}, expected two")
        count = found[block].stacked
        numbers = [whole(f"{action.action}: expert of block {block}", number) for number in numbers]
        if wrong := [number for number in numbers if number >= count]:
            raise InputError(f"{action.action}: got expert {wrong[0]} of block {block}, expected 0 to {count - 1}")
        if len(set(numbers)) < len(numbers):
            raise InputError(f"{action.action}: got the same expert of block {block} twice")
    return {block: tuple(numbers) for block, numbers in experts.items()}
