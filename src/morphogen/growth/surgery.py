"""Growth on live tensors: weights and the optimizer's state go where an action puts them.

B sequences, T tokens, V vocabulary
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import specs
from morphogen.candidate import Inheritance
from morphogen.growth.actions import Grown
from morphogen.inherit.descent import Moments
from morphogen.inherit.plan import plan
from morphogen.inherit.splice import StateDict, from_parent, splice
from morphogen.network import LanguageModel


class Operated(NamedTuple):
    """Weights and moments after an action, what became of which, and whether the function is the same."""

    state: StateDict
    moments: Moments
    report: Inheritance
    exact: bool


def operate(
    grown: Grown,
    before: Blueprint,
    state: Mapping[str, Tensor],
    moments: Mapping[str, StateDict],
    seed: int,
) -> Operated:
    """Carries an action out on the weights of `before` and what the optimizer holds of them, neither of which is
    touched.

    moments: kind -> parameter -> tensor, as `Updater.carried` gives them; they go where their parameters go, bit for
    bit, and are zero for fresh entries. Of a new block every entry counts as new, also of a copy. seed: of what is
    drawn.
    """
    after = grown.blueprint
    if after.emb.vocab is None:
        after = after.with_vocab(before.context().vocab)
    drawn = plan(after, [before], takes=grown.takes, stacked=grown.stacked)
    spliced = splice(drawn, [from_parent(dict(state), 0, moments)], seed)
    dropped = sum(item.entries for item in drawn.dropped)
    report = spliced.report(after, drawn.exact, drawn.notes, dropped, ("before",))
    carried, present = Moments.carried(spliced), {block.id for block in before.blocks}
    new = {
        name: torch.ones(spec.shape, dtype=torch.bool)
        for name, (gene, _, spec) in specs(after).items()
        if spec.trained and gene.block is not None and gene.block.id not in present
    }
    return Operated(spliced.state, Moments(carried.of, {**carried.fresh, **new}), report, drawn.exact)


@torch.no_grad()
def max_delta(before: LanguageModel, after: LanguageModel, ids_BT: Tensor) -> tuple[float, float]:
    """(max |Δlogit|, max |logit| of `before`) on some text, over the tokens that both models know; dropout is off."""
    old_BTV, new_BTV = (_logits(model, ids_BT) for model in (before, after))
    known = min(old_BTV.shape[-1], new_BTV.shape[-1])
    delta = (new_BTV[..., :known] - old_BTV[..., :known].to(new_BTV)).abs().amax()
    return float(delta), float(old_BTV.abs().amax())


def _logits(model: LanguageModel, ids_BT: Tensor) -> Tensor:
    mode = model.training
    model.eval()
    try:
        logits_BTV: Tensor = model(ids_BT.to(model.emb.weight.device))
    finally:
        model.train(mode)
    return logits_BTV
