"""What is wrong in a file, in one line each: where it stands, what was found, what is allowed."""

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from morphogen.blueprint.oneof import OneOf
from morphogen.errors import nearest
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.part import REGISTRY
from morphogen.parts.contract.registry import TAG, PartIn

Loc = tuple[int | str, ...]

#: Of what pydantic says of a type -> what was expected.
EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number of at most 19 digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), "a mapping"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
}
#: A file is told of at most so many mistakes at a time.
MOST_LINES = 20


def describe(cls: type[BaseModel], details: Sequence[ErrorDetails], file: str, tree: Any) -> str:
    """A line for each mistake. What an alias or a merge repeats is told of once."""
    # A tuple whose items are wrong is also reported as too short, which misleads.
    details = [d for d in details if d["type"] != "too_short" or not _deeper(details, d["loc"])]
    lines: dict[tuple[Any, ...], str] = {}
    for detail in details:
        at = (*detail["loc"], _tag_field(cls, detail)) if detail["type"] == "union_tag_invalid" else detail["loc"]
        line, column, path = place(tree, at)
        said = what(cls, detail, detail["loc"])
        lines.setdefault((line, column, at[-1:], said), f"{file}:{line}:{column} {path}: {said}")
    return listed(list(lines.values()))


def listed(lines: Sequence[str]) -> str:
    """The lines, the first of them where they are many."""
    more = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "\n".join([*lines[:MOST_LINES], *more])


def _deeper(details: Sequence[ErrorDetails], loc: Loc) -> bool:
    return any(len(d["loc"]) > len(loc) and d["loc"][: len(loc)] == loc for d in details)


def what(cls: type[BaseModel], error: ErrorDetails, loc: Loc) -> str:
    """What was found at `loc` in a `cls`, and what is allowed there."""
    kind, got, ctx = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(cls, loc)
    if kind == "missing":
        return "required item is missing" if isinstance(loc[-1], int) else "required field is missing"
    if kind == "union_tag_invalid":
        tag, allowed = str(ctx["tag"]), str(ctx["expected_tags"])
        return _choice(tag.removeprefix(TAG), sorted(a.strip("' ").removeprefix(TAG) for a in allowed.split(",")))
    if kind == "union_tag_not_found":
        return f"got {show(got)}, expected a mapping with '{_tag_field(cls, error)}'"
    if kind == "literal_error":
        return _choice(got, [a.strip("' ") for a in str(ctx["expected"]).replace(" or ", ", ").split(",")])
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind in EXPECTED:
        _, also, word = str(loc[-1]).partition(" or ") if loc else ("", "", "")  # what a branch of a union says besides
        return f"got {show(got)}, expected {EXPECTED[kind]}{also}{word}"
    if kind in ("too_short", "too_long"):
        bound = f"at least {ctx['min_length']}" if kind == "too_short" else f"at most {ctx['max_length']}"
        held = f"{ctx['actual_length']} items" if ctx["actual_length"] else show(got)
        return f"got {held}, expected {bound}"
    if kind == "string_pattern_mismatch":
        return f"got {show(got)}, expected text that matches {ctx['pattern']}"
    if kind == "string_too_short":
        return f"got {show(got)}, expected text of at least {ctx['min_length']} characters"
    message = str(error["msg"])
    message = message[0].lower() + message[1:]
    return f"got {show(got)}, expected {message.removeprefix('input should be ').removeprefix('a valid ')}"


def _unknown_field(cls: type[BaseModel], loc: Loc) -> str:
    name, names = str(loc[-1]), field_names(cls, loc[:-1])
    if name in names:
        return f"another name of {names[name]!r}, which is set too"
    if (home := _home(cls, name)) and home != ".".join(map(str, loc)):
        return f"unknown field here; it is understood as {home}"
    if kinds := _other_kinds(cls, loc[:-1], name):
        return f"unknown field of {str(loc[-2]).removeprefix(TAG)}; {', '.join(kinds)} has it"
    close = nearest(name, names)
    return "unknown field" + (f", did you mean {close!r}?" if close else "")


def _home(cls: type[BaseModel], name: str) -> str | None:
    """Where in a section of `cls` a field of that name stands, as in `train.optimizer`; None where there is none."""
    for section, field in cls.model_fields.items():
        for model in _models(field.annotation):
            if name in model.model_fields and not _is_part(model):
                return f"{section}.{name}"
    return None


def _is_part(model: type[BaseModel]) -> bool:
    return "kind" in model.model_fields


def _tag_field(cls: type[BaseModel], error: ErrorDetails) -> str:
    """The field that says which of several kinds something is: one that pydantic names, or a mark of ours."""
    named = str(error["ctx"]["discriminator"])
    return named.strip("'") if named.startswith("'") else _allowed(cls, error["loc"]).told_by


def _choice(got: object, allowed: list[str]) -> str:
    close = nearest(got, allowed)
    return f"got {show(got)}, expected one of {', '.join(allowed)}" + (f"; did you mean {close!r}?" if close else "")


def show(value: object) -> str:
    """A value as it stands in a file, the beginning of a long one."""
    words = {True: "true", False: "false"}
    text = words[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def place(tree: Any, loc: Loc) -> tuple[int, int, str]:
    """Line and column (from 1) of the nearest place that exists, and the whole path as a user writes it."""
    line, column = (tree.lc.line, tree.lc.col) if isinstance(tree, CommentedMap | CommentedSeq) else (0, 0)
    path, here = "", tree
    for i, step in enumerate(loc):
        if isinstance(step, str) and _is_label(here, step, last=i + 1 == len(loc)):
            continue
        path += f"[{step}]" if isinstance(step, int) else (f".{step}" if path else step)
        key = _written(here, step) if isinstance(here, CommentedMap) else step
        if isinstance(here, CommentedMap) and key in here:
            line, column = _key_place(here, key) or (line, column)
            here = here[key]
        elif isinstance(here, CommentedSeq) and isinstance(step, int) and step < len(here):
            line, column = here.lc.item(step)
            here = here[step]
        else:
            here = None
    return line + 1, column + 1, path or "file"


def _written(mapping: CommentedMap, name: int | str) -> int | str:
    """A field's name as a mapping has it, which may be another name of it."""
    others = () if name in mapping else [other for other, own in other_names().items() if own == name]
    return next((other for other in others if other in mapping), name)


def _is_label(here: Any, step: str, *, last: bool) -> bool:
    """Whether a step of pydantic's names a branch of a union, or a key as such, and nothing that stands in a file."""
    if step.startswith(TAG) or step == "[key]":
        return True
    if isinstance(here, CommentedMap):
        return step not in here and not last and step != "kind"
    return here is not None


def _key_place(mapping: CommentedMap, key: object) -> tuple[int, int] | None:
    """Where a key stands: in the mapping itself, or in what a merge (<<) brings into it."""
    if key in (mapping.lc.data or {}):
        line, column = mapping.lc.key(key)
        return int(line), int(column)
    merged = mapping.merge
    for i in range(len(merged)):
        source = merged[i][1] if isinstance(merged[i], tuple) else merged[i]
        if key in source and (found := _key_place(source, key)):
            return found
    return None


def field_names(cls: type[BaseModel], loc: Loc) -> dict[str, str]:
    """Field names allowed in the mapping at `loc`, other names of fields among them -> the field's own."""
    names = {name: own for m in _allowed(cls, loc).models for name, own in names_of(m).items()}
    return names | ({"type": "kind"} if "kind" in names and "type" not in names else {})


def _other_kinds(cls: type[BaseModel], loc: Loc, name: str) -> list[str]:
    """Of what is one of several kinds at `loc`: the kinds it might be that have a field called `name`."""
    if not (loc and str(loc[-1]).startswith(TAG)):
        return []
    return sorted({kind for kind, model in _allowed(cls, loc).kinds.items() if name in names_of(model)})


class _Allowed(NamedTuple):
    """models: what a mapping may be. kinds: of the field that holds it, or what it belongs to. told_by: the field that
    tells those apart."""

    models: set[type[BaseModel]]
    kinds: Mapping[str, type[BaseModel]]
    told_by: str


def _allowed(cls: type[BaseModel], loc: Loc) -> _Allowed:
    """What the mapping at `loc` may be."""
    found = _Allowed({cls}, {}, "kind")
    for step in loc:
        if isinstance(step, int):
            continue
        if step.startswith(TAG):
            tag = step.removeprefix(TAG)
            found = found._replace(models={found.kinds[tag]} if tag in found.kinds else found.models)
            continue
        fields = [m.model_fields[step] for m in found.models if step in m.model_fields]
        if fields:  # else the key of a mapping, or the name of a branch of a union
            found = _of_fields(fields)
    return found


def _of_fields(fields: Sequence[FieldInfo]) -> _Allowed:
    models, kinds, told_by = set[type[BaseModel]](), dict[str, type[BaseModel]](), "kind"
    for field in fields:
        inner = set(_models(field.annotation))
        models |= inner
        for mark in (*field.metadata, *_metadata(field.annotation)):
            if isinstance(mark, PartIn):
                kinds |= mark.choices()
            elif isinstance(mark, OneOf):
                kinds, told_by = kinds | mark.choices(inner), mark.by
    return _Allowed(models, kinds, told_by)


def names_of(model: type[BaseModel]) -> dict[str, str]:
    """Every name that a field is understood by on input -> its own."""
    return model.names() if issubclass(model, Frozen) else {name: name for name in model.model_fields}


def other_names() -> dict[str, str]:
    """Every other name that a field of a part is understood by -> the field's own."""
    classes = dict.fromkeys(REGISTRY.values())
    return {"type": "kind"} | {name: own for cls in classes for name, own in cls.names().items() if name != own}


def _metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    for arg in get_args(annotation):
        yield from _metadata(arg)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list, dict):
        for arg in get_args(annotation):
            yield from _models(arg)
