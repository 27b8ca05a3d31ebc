"""How tensors of ours lie in those of another framework, as data that reads both ways. No config in it.

A model of another framework is described once (`fusion.describe`); importing takes every tensor out of theirs, and
exporting puts it back by the very same description.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of a tensor that holds several, one after another."""

    start: int
    stop: int

    def view(self, whole: Tensor) -> Tensor:
        """The rows."""
        return whole[self.start : self.stop]


@dataclass(frozen=True)
class Interleaved:
    """Part `which` of `of`, each head's parts side by side: (heads, of, width) in a tensor's rows."""

    heads: int
    which: int
    of: int

    def view(self, whole: Tensor) -> Tensor:
        """The parts, (heads, width, ...)."""
        return whole.view(self.heads, self.of, -1, *whole.shape[1:])[:, self.which]


@dataclass(frozen=True)
class Halves:
    """Rows of heads whose first `turned` channels are rotated as halves (i with i + turned/2), ours as neighbours."""

    heads: int
    width: int
    turned: int

    def _order(self) -> Tensor:
        half = self.turned // 2
        pairs = [place for i in range(half) for place in (i, i + half)]
        return torch.tensor([*pairs, *range(self.turned, self.width)])

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.heads, self.width, *rows.shape[1:])

    def ours(self, theirs: Tensor) -> Tensor:
        """From halves to neighbours."""
        return self._by_head(theirs)[:, self._order()].flatten(0, 1)

    def theirs(self, ours: Tensor) -> Tensor:
        """From neighbours to halves."""
        return self._by_head(ours)[:, self._order().argsort()].flatten(0, 1)


@dataclass(frozen=True)
class Taken:
    """A tensor of ours: `times · part(theirs) + plus`, put in order.

    name: theirs. of: the shape of theirs. transposed: whether theirs is first transposed. part: of theirs.
    rope: how heads' channels are ordered.
    """

    name: str
    of: tuple[int, ...]
    transposed: bool = False
    part: Rows | Interleaved | None = None
    rope: Halves | None = None
    times: float = 1.0
    plus: float = 0.0

    def _view(self, whole: Tensor) -> Tensor:
        turned = whole.t() if self.transposed else whole
        return turned if self.part is None else self.part.view(turned)

    def ours(self, theirs: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Our tensor, in fp32, of shape `shape`."""
        found = self._view(theirs.float()).reshape(shape)
        found = found if self.rope is None else self.rope.ours(found)
        return (found * self.times + self.plus).contiguous() if self.times != 1.0 or self.plus else found.clone()

    def put(self, ours: Tensor, theirs: Tensor) -> None:
        """Writes our tensor into theirs, in place."""
        found = (ours.float() - self.plus) / self.times
        found = found if self.rope is None else self.rope.theirs(found)
        place = self._view(theirs)
        place.copy_(found.reshape(place.shape))


@dataclass(frozen=True)
class Filled:
    """A tensor of ours that theirs do not have: one value everywhere."""

    value: float


#: Every tensor of ours by name.
Tensors = Mapping[str, Taken | Filled]


def taken(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Our state dict. read: their tensor of a name."""
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        source = tensors[name]
        if isinstance(source, Filled):
            state[name] = torch.full(shape, source.value)
        else:
            state[name] = source.ours(read(source.name), shape)
    return state


def put(tensors: Tensors, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Their state dict; and the first tensor of ours that it does not give back, where there is one."""
    theirs: dict[str, Tensor] = {}
    for name, source in tensors.items():
        if isinstance(source, Taken):
            whole = theirs.setdefault(source.name, torch.zeros(source.of))
            source.put(state[name], whole)
    again = taken(tensors, {name: tuple(tensor.shape) for name, tensor in state.items()}, lambda name: theirs[name])
    lost = (n for n in state if not torch.allclose(again[n], state[n].float(), rtol=1e-6, atol=1e-7))
    return theirs, next(lost, None)
