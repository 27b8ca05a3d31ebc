"""The dense feed-forward layer. B batch, T tokens, D model dim, F hidden."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from morphogen.parts.contract.operator import operator, pick
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import ZEROS, Tensor
from morphogen.parts.contract.widths import Width, times

if TYPE_CHECKING:
    from torch import nn

Activation = Literal["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "relu2", "silu"]
#: Those that operators choose from: what `gelu_tanh` would add to them is rounding.
ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "geglu", "gelu", "relu", "relu2", "silu")
GATED = frozenset({"swiglu", "geglu", "geglu_tanh"})


class MLP(Part):
    """Feed-forward layer: `down(act(gate x) ⊙ up x)` for the gated activations, `down(act(up x))` for the others.

    Ref: arXiv 2002.05202 (gated), 2109.08668 (relu2).
    """

    slot: ClassVar = "ffn"
    neutral_fields: ClassVar = frozenset({"hidden", "bias"})
    later: ClassVar = frozenset({"bias"})

    kind: Literal["dense"] = "dense"
    hidden: PositiveInt
    """Units of the hidden layer."""
    activation: Activation = "swiglu"
    """Function of the units; those called …glu are gated and have a third matrix, those called …_tanh take GELU by its
    tanh formula, as models of that origin do."""
    bias: bool = False
    """Whether every matrix has a bias."""

    @property
    def pointwise(self) -> bool:
        """It is."""
        return True

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Only gated activations have a gate. Biases start at zero."""
        gate = ("gate",) if self.activation in GATED else ()
        table = {f"{name}.weight": Tensor(("hidden", "dim")) for name in ("up", *gate)}
        table["down.weight"] = Tensor(("dim", "hidden"), fresh_zero=("hidden",), writes=True)
        if self.bias:
            table |= {f"{name}.bias": Tensor(("hidden",), ZEROS) for name in ("up", *gate)}
            table["down.bias"] = Tensor(("dim",), ZEROS, writes=True)
        return table

    def sizes(self, ctx: Context) -> dict[str, int]:
        """hidden and dim."""
        return {"hidden": self.hidden, "dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """(B, T, D) to (B, T, D)."""
        from morphogen.parts.ffn.mlp_layer import FeedForward

        return FeedForward(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """Two matmuls, or three with a gate."""
        return Cost(flops=2.0 * (3 if self.activation in GATED else 2) * self.hidden * ctx.dim)

    def resized(self, target: Width, factor: float, ctx: Context) -> "MLP | None":
        """Other hidden units."""
        return self.evolve(hidden=times(self.hidden, factor)) if target == "ffn" else None

    def kept(self, ctx: Context) -> float:
        """Before and after the activation; with a gate also the gate and the product."""
        return float((4 if self.activation in GATED else 2) * self.hidden)


def scaled(size: int, factor: float, multiple: int = 8) -> int:
    """`size` times `factor`, rounded to a multiple but always larger for a factor above 1, else smaller (0 below 1)."""
    new = round(size * factor / multiple) * multiple
    if factor > 1:
        return new if new > size else (size // multiple + 1) * multiple
    return new if 0 < new < size else (size - 1) // multiple * multiple or size // 2


def regated(activation: Activation, rng: np.random.Generator) -> tuple[Activation, float]:
    """A gated activation in the place of one without a gate, or the other way round; and the factor on the hidden units
    by which the layer stays as large: two matrices in the place of three."""
    gated = activation in GATED
    others = [other for other in ACTIVATIONS if (other in GATED) != gated]
    return others[int(rng.integers(len(others)))], 1.5 if gated else 2 / 3


def resized(size: int, factor: float, multiple: int = 8) -> int:
    """`size` times `factor`, to a multiple where that is within 2 %, else to the nearest whole number; at least 1."""
    wanted = size * factor
    near = round(wanted / multiple) * multiple
    return near if abs(near - wanted) <= 0.02 * wanted else max(1, round(wanted))


@operator(MLP, preserves=True)
def widen_ffn(part: MLP, ctx: Context, rng: np.random.Generator) -> MLP | None:
    """More hidden units; the new ones write zero. Ref: arXiv 2305.02869."""
    return part.evolve(hidden=scaled(part.hidden, float(rng.choice([1.25, 1.5, 2.0]))))


@operator(MLP, preserves=False)
def narrow_ffn(part: MLP, ctx: Context, rng: np.random.Generator) -> MLP | None:
    """Fewer hidden units; those of largest norm stay."""
    smaller = scaled(part.hidden, float(rng.choice([0.5, 0.75])))
    return part.evolve(hidden=smaller) if 0 < smaller < part.hidden else None


@operator(MLP, preserves=False)
def change_activation(part: MLP, ctx: Context, rng: np.random.Generator) -> MLP | None:
    """Another activation; the weights both have are carried."""
    return part.evolve(activation=pick(rng, [a for a in ACTIVATIONS if a != part.activation]))


@operator(MLP, preserves=False)
def toggle_ffn_gate(part: MLP, ctx: Context, rng: np.random.Generator) -> MLP | None:
    """A gate put in or taken away, with so many hidden units that parameters and FLOPs stay. Ref: arXiv 2002.05202."""
    activation, factor = regated(part.activation, rng)
    return part.evolve(activation=activation, hidden=resized(part.hidden, factor))
