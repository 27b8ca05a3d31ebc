"""YAML in and out: comments survive a round trip, and every mistake is reported with its line and column."""

import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from morphogen.errors import InputError, nearest
from morphogen.parts.base import TAG, PartIn
from morphogen.paths import user_path

M = TypeVar("M", bound=BaseModel)
Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its tree with comments and positions, and the name to report it by."""

    file: str
    tree: CommentedMap

    def plain(self) -> dict[str, Any]:
        """The tree as ordinary Python data."""
        return dict(_plain(self.tree))

    def at(self, loc: Loc, said: str) -> str:
        """One line for a mistake at `loc`: `file:line:column path: said`."""
        line, column, path = _place(self.tree, loc)
        return f"{self.file}:{line}:{column} {path}: {said}"

    def parse(self, cls: type[M]) -> M:
        """The tree as a `cls`; InputError with one line per mistake."""
        try:
            return cls.model_validate(self.plain())
        except ValidationError as error:
            details = error.errors()
            # A tuple whose items are wrong is also reported as too short, which misleads.
            details = [d for d in details if d["type"] != "too_short" or not _deeper(details, d["loc"])]
            lines = [describe(cls, detail, self.file, self.tree) for detail in details]
            raise InputError("\n".join(dict.fromkeys(lines))) from None


#: What an experiment file is, for messages about one that is something else.
EXPERIMENT = "a mapping with at least 'model'"


def read(path: str | os.PathLike[str], wanted: str = EXPERIMENT) -> Document:
    """Parse a YAML file. InputError when it cannot be read, is not YAML, is empty, or is not a mapping.

    wanted: what the file should hold, for the last two.
    """
    file, found = str(path), user_path(path, str(path))
    try:
        text = found.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = found.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        close = nearest(found.name, names)
        hint = f"; did you mean {str(folder / close)!r}?" if close else ""
        raise InputError(f"{file}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{file}: cannot be read: {reason}") from None
    return loads(text, file, wanted)


def loads(text: str, file: str = "<text>", wanted: str = EXPERIMENT) -> Document:
    """Parse YAML text; errors as `read`."""
    try:
        tree = YAML().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    if tree is None:
        raise InputError(f"{file}: the file is empty, expected {wanted}")
    if not isinstance(tree, CommentedMap):
        raise InputError(f"{file}:1:1: found a {_kind(tree)}, expected {wanted}")
    return Document(file, tree)


def dumps(model: BaseModel, like: Document | None = None) -> str:
    """`model` as YAML. With `like`, its comments, key order and layout are kept wherever the keys still exist."""
    full = model.model_dump(mode="json")
    data = _with_kinds(model.model_dump(mode="json", exclude_defaults=True), full)
    tree = _merge(_unshared(like.tree, set()), data, full) if like else _fresh(data)
    out = StringIO()
    yaml = YAML()
    yaml.width = 120
    yaml.dump(tree, out)
    return out.getvalue()


def describe(cls: type[BaseModel], error: ErrorDetails, file: str, tree: Any) -> str:
    """One line for one mistake: `file:line:column path: what was found, what is allowed`."""
    loc = error["loc"]
    line, column, path = _place(tree, (*loc, "kind") if error["type"] == "union_tag_invalid" else loc)
    return f"{file}:{line}:{column} {path}: {what(cls, error, loc)}"


def _deeper(details: Sequence[ErrorDetails], loc: Loc) -> bool:
    return any(len(d["loc"]) > len(loc) and d["loc"][: len(loc)] == loc for d in details)


def what(cls: type[BaseModel], error: ErrorDetails, loc: Loc) -> str:
    """What was found at `loc` in a `cls`, and what is allowed there."""
    kind, got, ctx = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        close = nearest(loc[-1], _fields(cls, loc[:-1]))
        return "unknown field" + (f", did you mean {close!r}?" if close else "")
    if kind == "missing":
        return "required field is missing"
    if kind == "union_tag_invalid":
        tag, allowed = str(ctx["tag"]), str(ctx["expected_tags"])
        return _choice(tag.removeprefix(TAG), sorted(a.strip("' ").removeprefix(TAG) for a in allowed.split(",")))
    if kind == "union_tag_not_found":
        return f"got {_show(got)}, expected a mapping with 'kind'"
    if kind == "literal_error":
        return _choice(got, [a.strip("' ") for a in str(ctx["expected"]).replace(" or ", ", ").split(",")])
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    message = str(error["msg"])
    message = message[0].lower() + message[1:]
    return f"got {_show(got)}, expected {message.removeprefix('input should be ').removeprefix('a valid ')}"


def _choice(got: object, allowed: list[str]) -> str:
    close = nearest(got, allowed)
    return f"got {got!r}, expected one of {', '.join(allowed)}" + (f"; did you mean {close!r}?" if close else "")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    return {list: "list", str: "text", int: "number", float: "number"}.get(type(_plain(value)), type(value).__name__)


def _place(tree: Any, loc: Loc) -> tuple[int, int, str]:
    """Line and column (from 1) of the nearest place that exists, and the whole path as a user writes it."""
    line, column = (tree.lc.line, tree.lc.col) if isinstance(tree, CommentedMap | CommentedSeq) else (0, 0)
    path, here = "", tree
    for step in loc:
        if isinstance(step, str) and step.startswith(TAG):
            continue
        path += f"[{step}]" if isinstance(step, int) else (f".{step}" if path else step)
        if isinstance(here, CommentedMap) and step in here:
            line, column = here.lc.key(step)
            here = here[step]
        elif isinstance(here, CommentedSeq) and isinstance(step, int) and step < len(here):
            line, column = here.lc.item(step)
            here = here[step]
        else:
            here = None
    return line + 1, column + 1, path or "file"


def _fields(cls: type[BaseModel], loc: Loc) -> set[str]:
    """Field names allowed in the mapping at `loc`."""
    models: set[type[BaseModel]] = {cls}
    marks: list[PartIn] = []
    for step in loc:
        if isinstance(step, int):
            continue
        if step.startswith(TAG):
            tag = step.removeprefix(TAG)
            models = {c for mark in marks for kind, c in mark.choices().items() if kind == tag} or models
            continue
        found = [m.model_fields[step] for m in models if step in m.model_fields]
        marks = [m for f in found for m in (*f.metadata, *_metadata(f.annotation)) if isinstance(m, PartIn)]
        models = {m for f in found for m in _models(f.annotation)}
    return {name for m in models for name in m.model_fields}


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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    return value


def _with_kinds(data: Any, full: Any) -> Any:
    """`data` with every `kind` that `full` has: it may be a default, but no part can be read without it."""
    if isinstance(data, dict):
        kinds = {"kind": full["kind"]} if "kind" in full else {}
        return kinds | {key: _with_kinds(value, full[key]) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_kinds(value, whole) for value, whole in zip(data, full, strict=True)]
    return data


def _fresh(data: Any) -> Any:
    if isinstance(data, dict):
        return CommentedMap({key: _fresh(value) for key, value in data.items()})
    if isinstance(data, list):
        return CommentedSeq([_fresh(value) for value in data])
    return data


def _unshared(node: Any, seen: set[int]) -> Any:
    """The tree with a copy in place of every alias and merged mapping: what stands in several places of a file would
    change in all of them at once."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return node
    if id(node) in seen or (isinstance(node, CommentedMap) and node.merge):
        return _fresh(_plain(node))
    seen.add(id(node))
    for key in list(node) if isinstance(node, CommentedMap) else range(len(node)):
        node[key] = _unshared(node[key], seen)
    return node


def _merge(old: Any, data: Any, full: Any) -> Any:
    """`data` in the layout of `old`: keys that stand there stay (even at their default), others go or are added."""
    if isinstance(old, CommentedMap) and isinstance(data, dict):
        for key in [k for k in old if k not in full]:
            del old[key]
        for key, value in full.items():
            if key in old:
                old[key] = _merge(old[key], data.get(key, value), value)
            elif key in data:
                old[key] = _fresh(data[key])
        return old
    if isinstance(old, CommentedSeq) and isinstance(data, list) and len(old) == len(data):
        for i, value in enumerate(data):
            old[i] = _merge(old[i], value, full[i])
        return old
    return old if _plain(old) == data else _fresh(data)
