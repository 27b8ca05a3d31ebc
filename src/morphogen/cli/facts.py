"""What commands say of what they found, in plain lines or as JSON for machines. Nothing heavy is imported."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from morphogen.escape import json_shown, visible, visible_lines


def finite(value: Any) -> Any:
    """Plain data with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and value - value != 0.0 else value


def aside(line: str) -> None:
    """Progress, apart from the result."""
    print(visible_lines(line), file=sys.stderr, flush=True)


def show_facts(told: Mapping[str, Any], as_json: bool) -> None:
    """A mapping as JSON, or as aligned lines."""
    if as_json:
        print(json_shown(json.dumps(finite(told), indent=2)))
        return
    width = max((len(name) for name in told), default=0)
    for name, value in told.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_number(item)}" for key, item in value.items())
        print(visible(f"{name:<{width}}  {_number(value)}"))


def show_lines(title: str, lines: Iterable[str]) -> None:
    """Lines below a title."""
    print(visible(title))
    for line in lines:
        print(visible(f"  {line}"))


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
