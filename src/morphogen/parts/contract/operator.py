"""The registry of operators, which a mutation joins by being decorated."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, Self, TypeVar

import numpy as np

from morphogen import plugins
from morphogen.errors import InputError, OperatorError, unknown
from morphogen.parts.contract.part import Context, Part
from morphogen.parts.contract.registry import load_kinds


class BlockLike(Protocol):
    """What a block-level operator sees of a block (`blueprint.schema.Block`)."""

    @property
    def attn(self) -> Part | None:
        """Attention."""
        ...

    @property
    def ssm(self) -> Part | None:
        """State-space layer."""
        ...

    @property
    def extras(self) -> tuple[Part, ...]:
        """Further branches, and what modifies branches."""
        ...

    @property
    def ffn(self) -> Part | None:
        """Feed-forward layer."""
        ...

    @property
    def parallel(self) -> bool:
        """Whether all branches read the block's input."""
        ...

    def evolve(self, **changes: object) -> Self | None:
        """A changed, validated copy, or None."""
        ...


Level = Literal["part", "block", "model", "train", "compound"]


@dataclass(frozen=True)
class Operator:
    """A named mutation.

    Attributes:
        name: What experiments and edits call it.
        summary: What it does, in one line.
        level: What `act` is called on: a part of class `target`, a block, a whole blueprint, the settings of training,
            or (`compound`, several edits by other operators) a blueprint and what surrounds it.
        act: The mutation: its subject and a random generator to a changed one, or None where it does not apply.
        preserves: Whether a child that inherits computes its parent's function. A predicate where that depends on the
            target, called as `act` less the generator; None where each application says it itself.
        target: The class of part that it changes, for those of level `part`.
        weight: How often it is drawn, relative to the others, unless an experiment says otherwise.
    """

    name: str
    summary: str
    level: Level
    act: Callable[..., object]
    preserves: bool | Callable[..., bool] | None
    target: type[Part] | None = None
    weight: float = 1.0

    @property
    def declared(self) -> bool | None:
        """`preserves` where it is the same everywhere; None where it depends."""
        return self.preserves if isinstance(self.preserves, bool) else None

    def exact(self, *subject: object) -> bool:
        """`preserves`, resolved for a subject: `(part, ctx)`, `(block, ctx)`, `(blueprint,)` or `(train,)`."""
        if self.preserves is None:
            raise TypeError(f"{self.name} is exact or not by what it did, not by what it is called on")
        return self.preserves if isinstance(self.preserves, bool) else self.preserves(*subject)


OPERATORS: dict[str, Operator] = {}


def load_operators() -> None:
    """Imports what installed packages add to the operators, those of their kinds included; what cannot be imported is
    left out. A search does so before its first draw, so that no operator comes in the middle of one."""
    _load_operators(tuple(sys.path))


@lru_cache(maxsize=1)
def _load_operators(path: tuple[str, ...]) -> None:
    load_kinds()
    for name in plugins.names(plugins.OPERATORS):
        with suppress(InputError):
            plugins.find(plugins.OPERATORS, name)


def offered(names: Iterable[str], wanted: bool, given: Mapping[str, float]) -> dict[str, float]:
    """The weights of operators that are drawn only where they are wanted: 1 there, unless another is `given`."""
    return {name: 1.0 for name in names if wanted and name not in given}


#: Other names that are understood where an operator is named -> the operator's own.
ALIASES: Mapping[str, str] = {
    "toggle_mla": "toggle_mla_attention",
    "insert_retro": "insert_retro_module",
}

F = TypeVar("F", bound=Callable[..., object])
P = TypeVar("P", bound=Part)
T = TypeVar("T")
#: The block that an operator is given, and gives back changed.
BlockT = TypeVar("BlockT", bound=BlockLike)
PartAct = Callable[[P, Context, np.random.Generator], Part | None]


def find_operator(name: str) -> Operator:
    """The operator called `name`, or of which that is an alias; OperatorError with the nearest name otherwise."""
    load_operators()
    own = ALIASES.get(name, name)
    if own not in OPERATORS:
        raise OperatorError(not_found("operator", name))
    return OPERATORS[own]


def not_found(place: str, name: str) -> str:
    """What is said where no operator has a name."""
    return plugins.missing(unknown(place, name, OPERATORS), plugins.PARTS, plugins.OPERATORS)


def _add(
    level: Level,
    preserves: bool | Callable[..., bool] | None,
    target: type[Part] | None = None,
    weight: float = 1.0,
) -> Callable[[F], F]:
    def join(act: F) -> F:
        known = OPERATORS.get(act.__name__)
        if known is not None and known.act.__module__ != act.__module__:  # one that is imported again is the same
            where = f"that of {known.act.__module__} and that of {act.__module__}"
            raise RuntimeError(f"two operators are called {act.__name__}, {where}; give yours another name")
        summary = (act.__doc__ or "").strip().split("\n")[0]
        OPERATORS[act.__name__] = Operator(act.__name__, summary, level, act, preserves, target, weight)
        return act

    return join


def operator(
    target: type[P], *, preserves: bool | Callable[[P, Context], bool], weight: float = 1.0
) -> Callable[[PartAct[P]], PartAct[P]]:
    """Registers a mutation of one part: `(part, ctx, rng) -> part`, None where it does not apply.

    What it gives may be a part of another class for the same slot.

    Args:
        target: The class of part that it is called on.
        preserves: Whether a child that inherits computes its parent's function; a predicate of part and context where
            that depends.
        weight: How often it is drawn, relative to the others, unless an experiment says otherwise.

    Returns:
        A decorator, which gives the function back.

    Raises:
        RuntimeError: Another operator has the function's name.
    """
    return _add("part", preserves, target, weight)


def block_operator(*, preserves: bool | Callable[[BlockLike, Context], bool], weight: float = 1.0) -> Callable[[F], F]:
    """Registers a mutation of one block: `(block, ctx, rng) -> block`, None where it does not apply.

    Args:
        preserves: As of `operator`; a predicate of block and context.
        weight: As of `operator`.

    Returns:
        A decorator, which gives the function back.

    Raises:
        RuntimeError: Another operator has the function's name.
    """
    return _add("block", preserves, weight=weight)


def model_operator(*, preserves: bool | Callable[..., bool], weight: float = 1.0) -> Callable[[F], F]:
    """Registers a mutation of the whole blueprint: `(blueprint, rng) -> blueprint`, None where it does not apply.

    Args:
        preserves: As of `operator`; a predicate of the blueprint.
        weight: How often it is drawn, relative to the others, unless an experiment says otherwise.

    Returns:
        A decorator, which gives the function back.

    Raises:
        RuntimeError: Another operator has the function's name.
    """
    return _add("model", preserves, weight=weight)


def train_operator(*, preserves: bool) -> Callable[[F], F]:
    """Registers a mutation of how a candidate is trained: `(train, rng) -> train`, None where it does not apply.

    It is not drawn unless an experiment gives it a weight: architectures are compared under the same training.

    Args:
        preserves: As of `operator`.

    Returns:
        A decorator, which gives the function back.

    Raises:
        RuntimeError: Another operator has the function's name.
    """
    return _add("train", preserves, weight=0.0)


def compound_operator(name: str, summary: str, act: Callable[..., object]) -> None:
    """Register a mutation by other operators: `(blueprint, around, rng) -> variation.act.CompoundEdit`, or None."""
    OPERATORS[name] = Operator(name, summary, "compound", act, None)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T | None:
    """Draws one of several, each as likely.

    Args:
        rng: What draws.
        choices: What is drawn from.

    Returns:
        One of them; None when there are none.
    """
    return choices[int(rng.integers(len(choices)))] if choices else None
