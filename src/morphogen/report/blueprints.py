"""Blueprints as YAML in pieces, so that a page holds what a thousand candidates share only once.

A page has no room for comments and choices of layout, and a run writes it again and again: this writes plain data fast,
one value a line, so that two candidates can be compared line by line.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

#: Keys that say what the others are of.
_FIRST = ("name", "id", "kind")
#: Text that every reader of YAML takes for text.
_PLAIN = re.compile(r"(?!(?i:y|n|yes|no|on|off|true|false|null)$)[A-Za-z_][A-Za-z0-9_./-]*")


def pieces(blueprint: Mapping[str, Any]) -> list[str]:
    """The `model` section of an experiment: all but the blocks, then block by block. Joined they are the whole."""
    rest = {name: value for name, value in blueprint.items() if name != "blocks"}
    blocks = blueprint.get("blocks") or []
    head = f"model:\n{_indented(json.dumps(rest, sort_keys=True))}" if rest else "model:\n"
    head += "  blocks:\n" if blocks else "  blocks: []\n" if "blocks" in blueprint else ""
    return [head, *(_indented(json.dumps([block], sort_keys=True)) for block in blocks)]


@lru_cache(maxsize=4096)
def _indented(data: str) -> str:
    """JSON text as YAML, two blanks in. Most of it is the same in one candidate after the other."""
    return "".join(f"  {line}\n" for line in _lines(json.loads(data)))


def _lines(value: Any) -> Iterator[str]:
    """A mapping or a list, line by line."""
    if isinstance(value, Mapping):
        for name in sorted(value, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
            yield from _entry(f"{_scalar(name)}:", value[name])
        return
    for item in value:
        inner = list(_lines(item)) if _nested(item) else [_flow(item)]
        yield f"- {inner[0]}"
        yield from (f"  {line}" for line in inner[1:])


def _entry(name: str, value: Any) -> Iterator[str]:
    if not _nested(value):
        yield f"{name} {_flow(value)}"
        return
    yield name
    yield from (f"  {line}" for line in _lines(value))


def _nested(value: Any) -> bool:
    """Whether it takes lines of its own: a mapping, or a list of such."""
    if isinstance(value, Mapping):
        return bool(value)
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(i, Mapping | list) for i in value)
    )


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_scalar, value))}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value)
