"""Depth recurrence: a stretch of blocks run again and again. B batch, T tokens, D model dim."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from morphogen.parts.contract.part import Context, Cost, NormKind, Part
from morphogen.parts.contract.tensors import ZEROS, Axis, Tensor

if TYPE_CHECKING:
    from torch import nn

#: More steps than this are refused: a typo would otherwise train for days.
MOST_STEPS = 64

Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]


class Recurrence(Part):
    """Blocks `[start, end)`, the core, run r times on the output e of the blocks before them, the prelude:

        s₀ = 0,  or N(0, 1) in training for start_state "noise"
        sᵢ = core(e + gᵢ · (W_s norm(sᵢ₋₁) + W_e norm'(e)))

    and s_r goes on to the blocks after. W_e is there with `concat_prelude` (with it the adapter is a linear map of the
    state and the prelude, concatenated). gᵢ is 1 for the linear adapter; for the gated one it is a scalar per token,
    2 σ(w_s · norm(sᵢ₋₁) + w_e · norm'(e) + b), which starts at 1. Every step sees the prelude itself, so that a loop
    added to a trained model, with W_s and W_e at zero, computes what the model computed without it, at any r.

    In training r rises from `train_recurrence` to `max_train_recurrence` in equal shares of the first
    `curriculum_fraction` of the run, and stays there. Outside training it is `max_train_recurrence` and the start is
    zero; `test_recurrences` are measured besides. Ref: arXiv 2502.05171.
    """

    slot: ClassVar = "recurrence"
    # Tensors that come or go with `adapter` and `concat_prelude` decide about those; ranges are compared by block ids.
    neutral_fields: ClassVar = frozenset(
        {"id", "start", "end", "adapter", "concat_prelude", "train_recurrence", "curriculum_fraction", "start_state"}
    )

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]*$")] = ""
    """Its gene's stable name; assigned when absent."""
    start: NonNegativeInt
    """Position of the first block of the core."""
    end: PositiveInt
    """Position after the last block of the core."""
    adapter: Literal["linear", "gated"] = "linear"
    """How the state enters: a linear map, or one times a gate per token."""
    concat_prelude: bool = True
    """Whether the adapter reads the prelude too (W_e)."""
    train_recurrence: Steps = 1
    """Steps at the start of training."""
    max_train_recurrence: Annotated[int, Field(ge=2, le=MOST_STEPS)] = 4
    """Steps at the end of training, and whenever nothing is trained."""
    curriculum_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of training over which steps rise from the first to the last."""
    test_recurrences: tuple[Steps, ...] = (1, 2, 4)
    """Numbers of steps that are measured besides."""
    start_state: Literal["zero", "noise"] = "zero"
    """s₀ in training; zero otherwise."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"got start {self.start} and end {self.end}, expected at least one block in [start, end)")
        if self.train_recurrence > self.max_train_recurrence:
            raise ValueError(
                f"train_recurrence is {self.train_recurrence}, expected at most max_train_recurrence "
                f"({self.max_train_recurrence})"
            )
        return self

    @property
    def ramp(self) -> float:
        """The share of training over which the number of steps rises; 0 when it is the same from the first step."""
        return self.curriculum_fraction if self.train_recurrence < self.max_train_recurrence else 0.0

    def steps(self, progress: float) -> int:
        """How often the core runs when a share `progress` of training is done."""
        if progress >= self.ramp:
            return self.max_train_recurrence
        rise = self.max_train_recurrence - self.train_recurrence
        return self.train_recurrence + int(rise * progress / self.ramp)

    def mean_steps(self) -> float:
        """`steps`, averaged over a whole run of training."""
        while_rising = (self.train_recurrence + self.max_train_recurrence - 1) / 2
        return self.ramp * while_rising + (1.0 - self.ramp) * self.max_train_recurrence

    def within(self, ctx: Context) -> Self:
        """Without a rise the first number of steps is the last."""
        return self if self.ramp else self.model_copy(update={"train_recurrence": self.max_train_recurrence})

    def inert(self) -> frozenset[str]:
        """What is only a name or only measured, and a curriculum without a rise."""
        return frozenset({"id", "test_recurrences"} | (set() if self.ramp else {"curriculum_fraction"}))

    def unread(self) -> frozenset[str]:
        """What is a name, or measured, is read."""
        return self.inert() - {"id", "test_recurrences"}

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        """Only `concat_prelude` reads the prelude, only the gated adapter has a gate."""
        gate, both = self.adapter == "gated", self.concat_prelude
        present = {"prelude.weight": both, "gate_state": gate, "gate_prelude": gate and both, "gate_bias": gate}
        table = {
            "state.weight": Tensor(("dim", "dim"), writes=True),
            "prelude.weight": Tensor(("dim", "dim"), writes=True),
            "gate_state": Tensor(("dim",), ZEROS),
            "gate_prelude": Tensor(("dim",), ZEROS),
            "gate_bias": Tensor((), ZEROS),
        }
        return {name: tensor for name, tensor in table.items() if present.get(name, True)}

    def norms(self, ctx: Context) -> Mapping[str, tuple[Axis, NormKind]]:
        """One on the state; one on the prelude where that is read."""
        names = ("norm", "prelude_norm") if self.concat_prelude else ("norm",)
        return dict.fromkeys(names, ("dim", ctx.norm))

    def sizes(self, ctx: Context) -> dict[str, int]:
        """dim."""
        return {"dim": ctx.dim}

    def build(self, ctx: Context) -> "nn.Module":
        """The adapter."""
        from morphogen.parts.recurrence.recurrence_layer import Loop

        return Loop(self, ctx)

    def cost(self, ctx: Context) -> Cost:
        """The adapter's, each step: one matmul per source, and a dot product more where it is gated."""
        sources = 2 if self.concat_prelude else 1
        return Cost(flops=2.0 * sources * ctx.dim * (ctx.dim + (self.adapter == "gated")))


def follow(recurrences: Sequence[Recurrence], before: Sequence[str], after: Sequence[str]) -> tuple[Recurrence, ...]:
    """The recurrences of blocks with ids `before`, moved to where those blocks stand among `after`.

    Each takes the stretch that holds its blocks and as few others as possible: most of its own, less those of others;
    among equals one of its old length, then one near its old place. New blocks in between join it, at its edges they
    do not. One whose blocks are all gone is dropped, and so is one that would overlap another.
    """
    kept = list[Recurrence]()
    for loop in recurrences:
        span = _stretch(loop, before, after)
        if span is not None and all(span[1] <= other.start or other.end <= span[0] for other in kept):
            kept.append(loop.model_copy(update={"start": span[0], "end": span[1]}))
    return tuple(sorted(kept, key=lambda loop: loop.start))


def _stretch(loop: Recurrence, before: Sequence[str], after: Sequence[str]) -> tuple[int, int] | None:
    core, others = set(before[loop.start : loop.end]), set(before[: loop.start]) | set(before[loop.end :])
    mine = [position for position, block in enumerate(after) if block in core]

    def badness(span: tuple[int, int]) -> tuple[int, int, int]:
        inside = set(after[slice(*span)])
        far = abs(span[1] - span[0] - (loop.end - loop.start)), abs(span[0] - loop.start)
        return len(inside & others) - len(inside & core), *far

    return min(((i, j + 1) for i in mine for j in mine if i <= j), key=badness, default=None)
