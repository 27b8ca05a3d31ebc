"""Parts beside independent implementations: layers of transformers that compute with the same weights.

A `Case` computes the same function twice. The peer's weights are functions of ours, so that the gradients of both sides
are those of our parameters. What no library has is held against the slow references (`references`).

B batch, T tokens, D model dim
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from morphogen.blueprint.schema import Blueprint
from morphogen.network import assemble, initial_state
from morphogen.parts.contract.branch import Branch
from morphogen.parts.contract.part import Part

#: Tokens: more than one tile of attention and two chunks of every scan.
DIM, TOKENS = 24, 130
Weights = Mapping[str, Tensor]
#: Normalised input (B, T, D) and our weights by their names in the part to what the branch adds, (B, T, D).
Reference = Callable[[Tensor, Weights], Tensor]


@dataclass(frozen=True)
class Case:
    """One kind, or one variant of it, and what it is compared with.

    ours: input to output. weights: what `ours` computes with, buffers too; of those in `fixed`,
    `input` among them, no gradient is taken.
    """

    name: str
    reference: str
    ours: Callable[[Tensor], Tensor]
    theirs: Reference
    weights: Weights
    fixed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Errors:
    """Largest differences, each relative to the reference's largest entry. tensor: which has the worst gradient."""

    forward: float
    gradient: float
    tensor: str


def blueprint_of(*blocks: Mapping[str, Any]) -> Blueprint:
    """Blocks in a small model."""
    named = [{"id": f"b{i}", **block} for i, block in enumerate(blocks)]
    return Blueprint.model_validate({"emb": {"dim": DIM, "vocab": 37}, "blocks": named})


def stirred(blueprint: Blueprint) -> dict[str, Tensor]:
    """A state in which every tensor has moved off its special start."""
    draw = torch.Generator().manual_seed(0)
    return {
        name: tensor if name.endswith(("eps", "slopes")) else tensor + 0.1 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in initial_state(blueprint, 0).items()
    }


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def case(name: str, reference: str, part: Part, theirs: Reference) -> Case:
    """A branch on normalised input; a selector's weights are fixed, as the peers' indexers have no gradient."""
    blueprint = blueprint_of({"extras": [part]} if part.slot == "extra" else {part.slot: part})
    block = assemble(blueprint, stirred(blueprint)).eval().blocks[0]
    branch = next(module for module in block.modules() if isinstance(module, Branch))
    weights = {name: tensor for name, tensor in tensors(branch).items() if not name.startswith("norm.")}
    fixed = frozenset(name for name in weights if name.startswith("selector."))
    return Case(name, reference, branch.mix, theirs, weights, fixed)


def errors(made: Case, tokens: int = TOKENS) -> Errors:
    """Forward and backward on an input of unit mean square, in fp32."""
    draw = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(2, tokens, DIM, generator=draw)
    x_BTD = (x_BTD / x_BTD.square().mean(-1, keepdim=True).sqrt()).requires_grad_()
    want, got = made.theirs(x_BTD, made.weights), made.ours(x_BTD)
    dy_BTD = torch.randn(want.shape, generator=draw)
    trained = {n: w for n, w in made.weights.items() if w.requires_grad and n not in made.fixed}
    leaves = ({} if "input" in made.fixed else {"input": x_BTD}) | trained
    wants, gots = (torch.autograd.grad(y, list(leaves.values()), dy_BTD) for y in (want, got))
    gradients = {name: _relative(a, b) for name, a, b in zip(leaves, wants, gots, strict=True)}
    worst = max(gradients, key=lambda name: gradients[name])
    return Errors(_relative(want, got), gradients[worst], worst)


def _relative(want: Tensor, got: Tensor) -> float:
    return float(((got - want).abs().max() / want.abs().max()).detach())


# ------------------------------------------------------------------------------------------------------- layers


def layer(peer: nn.Module, weights_of: Callable[[Weights], Weights], *args: Any, **inputs: Any) -> Reference:
    """A layer of another library as a reference. weights_of: from our weights to all of its own."""

    def run(x_BTD: Tensor, weights: Weights) -> Tensor:
        out = functional_call(peer.eval(), dict(weights_of(weights)), (x_BTD, *args), inputs)
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    return run


def causal_bias(visible_TT: Tensor) -> Tensor:
    """Additive mask (B, 1, T, T)."""
    bias_TT = torch.zeros(visible_TT.shape).masked_fill(~visible_TT, torch.finfo(torch.float32).min)
    return bias_TT.expand(2, 1, -1, -1)


def halves(weight: Tensor, width: int, rotated: int | None = None) -> Tensor:
    """Rows of heads of `width` channels, whose first `rotated` (all when None) are pairs side by side, with those
    pairs as first halves and second halves."""
    rotated = width if rotated is None else rotated
    turned, rest = weight.unflatten(0, (-1, width)).split([rotated, width - rotated], 1)
    turned = turned.unflatten(1, (rotated // 2, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([turned, rest], 1).flatten(0, 1)


def rotary(module: type[nn.Module], config: Any) -> Any:
    """cos and sin of the peer's own tables."""
    return module(config)(torch.zeros(1, TOKENS, DIM), torch.arange(TOKENS)[None])


def eager(config: Any) -> Any:
    """The plain formula, which takes any mask."""
    config._attn_implementation = "eager"
    return config


def with_eps(peer: nn.Module, name: str, field: str = "variance_epsilon") -> nn.Module:
    """The peer with our eps in its norm `name`."""
    setattr(peer.get_submodule(name), field, 1e-5)
    return peer
