"""How much a model uses each of its layers, in [0, 1]: measured while it trains, averaged over a window.

A layer is a block, and what it does is the change that it makes of the stream, δ = y − x. Three measures u of it:

    removal     L without the block − L, on some held text: what it does change it by, itself. A forward pass each, so
                that it is measured once a window, on as much text as that affords.
    gradient    Σ_t (δ_t·g_t)², g = ∂L/∂y at the tokens t of a step: twice what the loss would rise by, to second
                order, if the block were taken away at a token, with the Hessian taken for that of Fisher. (To first
                order it is −Σ δ·g, the gradient of a factor at the block's output, which goes to zero as a model
                learns, however much it needs the block.) It costs next to nothing, but its terms are heavy-tailed, and
                it cannot see what other layers would make up for. Ref: arXiv 1906.10771.
    activation  ‖δ‖ · the share of entries of δ that are not zero. It says little of what a layer is good for.

The utilization of a layer is the mean of its u over the window, by that of the most used layer; 0 where it is
negative. That of an identity, whose δ is 0, is 0. Shapes: B sequences, T tokens, D channels, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from morphogen.growth.triggers import samples
from morphogen.network import LanguageModel

Measure = Literal["removal", "gradient", "activation"]


class Watch:
    """What the forward and backward passes of one step say of every block, added up over accumulated batches."""

    def __init__(self, model: LanguageModel, measure: Literal["gradient", "activation"]) -> None:
        self._model, self._measure = model, measure
        self._sums = {block.id: torch.zeros((), device=model.emb.weight.device) for block in model.blueprint.blocks}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Meanwhile it watches."""
        look = self._gradient if self._measure == "gradient" else self._activation
        hooks = [
            module.register_forward_hook(partial(look, block.id))
            for block, module in zip(self._model.blueprint.blocks, self._model.blocks, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self) -> dict[str, float]:
        """u of every block, by id."""
        values = torch.stack(list(self._sums.values())).tolist()
        return dict(zip(self._sums, values, strict=True))

    def _gradient(self, block: str, module: nn.Module, inputs: tuple[Tensor, ...], y_BTD: Tensor) -> None:
        if not y_BTD.requires_grad:
            return
        with torch.no_grad():
            delta_BTD = y_BTD - inputs[0]

        y_BTD.register_hook(partial(self._meet, block, delta_BTD))  # type: ignore[no-untyped-call]

    def _meet(self, block: str, delta_BTD: Tensor, grad_BTD: Tensor) -> None:
        """The gradient at a block's output has come."""
        each_BT = torch.einsum("btd,btd->bt", delta_BTD.float(), grad_BTD.float())
        self._sums[block] += each_BT.square().sum()

    @torch.no_grad()
    def _activation(self, block: str, module: nn.Module, inputs: tuple[Tensor, ...], y_BTD: Tensor) -> None:
        delta_BTD = (y_BTD - inputs[0]).float()
        self._sums[block] += torch.linalg.vector_norm(delta_BTD) * (delta_BTD != 0.0).float().mean()


@torch.no_grad()
def removal(model: LanguageModel, loss: Callable[[LanguageModel], float]) -> dict[str, float]:
    """What `loss` of the model rises by without each block, by id. Dropout is as `loss` has it."""
    whole = loss(model)
    found = {}
    for block, module in zip(model.blueprint.blocks, model.blocks, strict=True):
        hook = module.register_forward_hook(lambda module, inputs, y_BTD: inputs[0])
        try:
            found[block.id] = loss(model) - whole
        finally:
            hook.remove()
    return found


def normalised(scores: Mapping[str, float]) -> dict[str, float]:
    """Each by the largest, in [0, 1]; 0 where it is negative, and for all where there is nothing above."""
    most = max(scores.values(), default=0.0)
    return {block: max(0.0, score / most) if most > 0.0 else 0.0 for block, score in scores.items()}


class Uses:
    """Samples of one measure over a rolling window of `window` steps, of one architecture."""

    def __init__(self, measure: Measure, window: int) -> None:
        self.measure, self.window = measure, window
        self._wanted = samples(measure, window)
        self._samples: deque[dict[str, float]] = deque(maxlen=self._wanted)

    def due(self, step: int) -> bool:
        """Whether the step that comes is one to be measured."""
        return (step + 1) % (self.window // self._wanted) == 0

    def add(self, scores: Mapping[str, float]) -> None:
        """One sample: u by block."""
        self._samples.append(dict(scores))

    def forget(self) -> None:
        """The architecture has changed."""
        self._samples.clear()

    @property
    def values(self) -> dict[str, float] | None:
        """Utilization by block; None until the window is full."""
        if len(self._samples) < self._wanted:
            return None
        return self.so_far

    @property
    def so_far(self) -> dict[str, float]:
        """Utilization by block of the samples that there are; empty where there is none."""
        blocks = self._samples[0] if self._samples else {}
        return normalised({block: sum(sample[block] for sample in self._samples) for block in blocks})

    def state(self) -> list[dict[str, float]]:
        """The samples, for JSON."""
        return list(self._samples)

    @classmethod
    def from_state(cls, measure: Measure, window: int, state: Any) -> Self:
        """As it was when `state` was taken."""
        uses = cls(measure, window)
        uses._samples.extend(state)
        return uses
