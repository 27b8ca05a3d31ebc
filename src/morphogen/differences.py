"""What differs between two pieces of nested data, place by place. Called by `resuming`, `morphogen diff`."""

from collections.abc import Collection, Mapping
from itertools import zip_longest
from typing import Any

Difference = tuple[str, Any, Any]


def differences(there: Any, here: Any, may_differ: Collection[str] = (), path: str = "") -> list[Difference]:
    """(path, value there, value here) for every leaf that differs, but those at paths that may. What is missing on one
    side counts as None."""
    if path in may_differ or there == here:
        return []
    if _all(Mapping, there, here):
        one, other = there or {}, here or {}
        found = (
            differences(one.get(name), other.get(name), may_differ, f"{path}.{name}" if path else str(name))
            for name in sorted({*one, *other})
        )
        return [difference for below in found for difference in below]
    if _all(list | tuple, there, here) and any(isinstance(item, Mapping) for item in (*(there or ()), *(here or ()))):
        pairs = enumerate(zip_longest(there or (), here or ()))
        return [found for i, (a, b) in pairs for found in differences(a, b, may_differ, f"{path}[{i}]")]
    return [(path, there, here)]


def _all(kind: Any, *values: Any) -> bool:
    """Whether all values that are given are of the kind."""
    return all(value is None or isinstance(value, kind) for value in values)


def words(value: Any) -> str:
    """A value as one says it: `nothing`, `3`, `a.txt`, `kind bpe, vocab 300`."""
    if value is None or value == () or value == [] or value == {}:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_inner(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_inner, value))
    return value if isinstance(value, str) and value.strip() == value and value else repr(value)


def _inner(value: Any) -> str:
    return f"({words(value)})" if isinstance(value, Mapping | list | tuple) and value else words(value)
