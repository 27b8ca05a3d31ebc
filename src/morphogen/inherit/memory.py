"""What the rules of growth remember of the training behind some weights, as checkpoints and records keep it."""

import json
from typing import Any, Literal

from pydantic import PositiveInt

from morphogen.blueprint.record import recorded
from morphogen.candidate import Record
from morphogen.errors import InputError

#: Before it had a number it was the first.
FORMAT = 2


class Experts(Record):
    """What is known of the experts of one mixture: as `growth.morphogenesis.Book` has it."""

    usage: dict[int, tuple[float, ...]]
    observed: tuple[int, ...]
    born: tuple[int | None, ...]
    below: dict[str, tuple[int, ...]]
    changed: int | None


class Books(Record):
    """Of all mixtures by the ids of their blocks, as they stand after a step."""

    step: int
    books: dict[str, Experts]


class Memory(Record):
    """As `growth.controller.Controller` has it. of: the identity of the architecture. rules: id -> times that it has
    acted, steps and tokens since which it waits, and its trigger. last: steps and tokens of the last growth."""

    format: Literal[2]
    of: str
    tokens_per_step: PositiveInt
    rules: dict[str, tuple[int, int, int, dict[str, Any]]]
    last: tuple[int, int] | None
    growths: int
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    uses: tuple[tuple[dict[str, float], ...], ...]
    experts: Books


def memory_in(text: str, place: str) -> Memory | None:
    """What is remembered, None for no text. InputError with the `place` of the text where it cannot be read."""
    if not text:
        return None
    place = f"{place}: what is remembered of growth"
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{place} is damaged: it cannot be read") from None
    if isinstance(told, dict) and (found := told.get("format", 1)) in range(1, FORMAT):
        raise InputError(
            f"{place} is of an older format, {found}, and this version reads {FORMAT}; go on with the version that "
            "wrote it, or begin without these weights"
        )
    return recorded(Memory, told, place)
