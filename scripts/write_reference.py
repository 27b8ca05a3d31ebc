"""Writes docs/reference.md: every field of an experiment, from the JSON Schema. --check only says whether it is so.

python scripts/write_reference.py [--check]
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from morphogen.blueprint.oneof import TELLING
from morphogen.experiment import Experiment

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD = """# Every field

Written by `python scripts/write_reference.py` from what stands in the code, as `morphogen schema` shows it to editors;
[experiments.md](experiments.md) explains how they work together. Numbers in brackets are papers on arXiv.
"""
BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
    "multipleOf": "a multiple of {}",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "null",
}

Schema = Mapping[str, Any]


def reference() -> str:
    """The whole page."""
    kinds = _kinds()
    return "\n".join([HEAD, *(_section(name, kinds) for name in _used("Experiment", kinds, {}))])


def undocumented() -> list[str]:
    """Fields that have no meaning written under them."""
    return [
        f"{name}.{field}"
        for name, kind in _kinds().items()
        for field, what in kind["properties"].items()
        if "const" not in what and "description" not in what
    ]


def _kinds() -> dict[str, Schema]:
    """Every kind of data with fields, by name."""
    root: dict[str, Any] = Experiment.model_json_schema()
    return {name: kind for name, kind in {**root["$defs"], "Experiment": root}.items() if "properties" in kind}


def _used(name: str, kinds: Mapping[str, Schema], seen: dict[str, None]) -> Iterable[str]:
    """A kind of data, then those its fields refer to, as they come; each once, added to `seen`."""
    seen[name] = None
    for field in kinds[name]["properties"].values():
        for other in filter(kinds.__contains__, _references(field)):
            if other not in seen:
                _used(other, kinds, seen)
    return seen


def _references(found: Any) -> Iterator[str]:
    if isinstance(found, Mapping):
        if "$ref" in found:
            yield found["$ref"].rpartition("/")[2]
        for key, value in found.items():
            if key not in ("default", "discriminator"):
                yield from _references(value)
    elif isinstance(found, list):
        for value in found:
            yield from _references(value)


def _section(name: str, kinds: Mapping[str, Schema]) -> str:
    kind = kinds[name]
    rows = [
        f"| `{field}` | {_type(what)} | {_default(what, field in kind.get('required', ()), kinds)} "
        f"| {what.get('description', '').replace('|', '&#124;')} |"
        for field, what in sorted(kind["properties"].items(), key=lambda item: item[0] not in TELLING)
        if "const" not in what
    ]
    given = [f"`{field}: {what['const']}`. " for field, what in kind["properties"].items() if "const" in what]
    table = [
        "| field | values | default | meaning |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join([f"## {name}", "", "".join(given) + kind.get("description", ""), "", *(table if rows else ()), ""])


def _type(what: Schema) -> str:
    if "$ref" in what:
        name = what["$ref"].rpartition("/")[2]
        if name == "JsonValue":
            return "anything"
        return f"[{name}](#{name.lower()})"
    if "enum" in what or "const" in what:
        return ", ".join(f"`{value}`" for value in what.get("enum", [what.get("const")]))
    if either := what.get("anyOf", what.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(one) for one in either))
    if "prefixItems" in what:
        return f"[{', '.join(_type(item) for item in what['prefixItems'])}]"
    if what.get("type") == "array":
        return f"list of {_type(what['items'])}"
    if what.get("type") == "object":
        more = what.get("additionalProperties")
        keys = _type(what["propertyNames"]) if "propertyNames" in what else "name"
        return f"{keys} to {_type(more) if isinstance(more, Mapping) else 'anything'}"
    bounds = [text.format(f"{what[key]:,}".removesuffix(".0")) for key, text in BOUNDS.items() if key in what]
    return " ".join([TYPES.get(what.get("type", ""), "anything"), ", ".join(bounds)]).strip()


def _default(what: Schema, required: bool, kinds: Mapping[str, Schema]) -> str:
    if "default" not in what:
        return "required" if required else ""
    default = _said(what["default"], what, kinds)
    return f"`{json.dumps(default)}`" if default or "$ref" not in what else "all as below"


def _said(default: Any, what: Schema, kinds: Mapping[str, Schema]) -> Any:
    """A default without what is a default within it."""
    if isinstance(default, list) and "items" in what:
        return [_said(one, what["items"], kinds) for one in default]
    if not isinstance(default, Mapping) or "$ref" not in what:
        return default
    usual = kinds[what["$ref"].rpartition("/")[2]]["properties"]
    return {key: value for key, value in default.items() if value != usual[key].get("default")}


if __name__ == "__main__":
    page = reference()
    if missing := undocumented():
        sys.exit(f"no meaning is written under {', '.join(missing)}")
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit("docs/reference.md is not what the code says; write it anew: python scripts/write_reference.py")
