"""YAML in and out: comments survive a round trip, and every mistake is reported with its line and column.

A key whose value is null is as if it were not there. Text that is a number, such as "8", is read as that number, and
8.0 as the whole number 8; true is no number, and 1 neither true nor false.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from morphogen.blueprint.bounded import check_regular, compose, text_of
from morphogen.blueprint.mistakes import Loc, describe, listed, names_of, other_names, place, show
from morphogen.blueprint.oneof import TELLING
from morphogen.errors import InputError, nearest
from morphogen.parts.contract.part import Part
from morphogen.paths import user_path

M = TypeVar("M", bound=BaseModel)

#: No whole number is larger: sizes and counts, and what is computed of them, stay numbers.
LARGEST = 2**63 - 1
#: Keys below which null is a value like any other: fields that a template sets, parameters of a plug-in.
OPAQUE = frozenset({"set", "params"})


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: its tree with comments and positions, the name to report it by, and its text."""

    file: str
    tree: CommentedMap
    text: str

    def plain(self) -> dict[str, Any]:
        """The tree as ordinary Python data, without the keys whose value is null."""
        return dict(_told(_plain(self.tree)))

    def at(self, loc: Loc, said: str) -> str:
        """One line for a mistake at `loc`: `file:line:column path: said`."""
        return f"{self.spot(loc)} {place(self.tree, loc)[2]}: {said}"

    def spot(self, loc: Loc) -> str:
        """Where `loc` stands: `file:line:column`."""
        line, column, _ = place(self.tree, loc)
        return f"{self.file}:{line}:{column}"

    def check(self) -> None:
        """InputError, with a line for each, where keys are no names or numbers none."""
        if unfit := list(_unfit(self.tree)):
            raise InputError(listed([self.at(loc, said) for loc, said in unfit]))

    def parse(self, cls: type[M]) -> M:
        """The tree as a `cls`; InputError with one line per mistake."""
        self.check()
        plain = self.plain()
        try:
            found = cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(describe(cls, error.errors(include_url=False), self.file, self.tree)) from None
        if mistaken := list(_mistaken(plain, found)):
            raise InputError(listed([self.at(loc, said) for loc, said in mistaken]))
        return found


#: What an experiment file is, for messages about one that is something else.
EXPERIMENT = "a mapping with at least 'model'"


def read(path: str | os.PathLike[str], wanted: str = EXPERIMENT) -> Document:
    """Parse a YAML file. InputError when it cannot be read, is not YAML, is empty, or is not a mapping.

    wanted: what the file should hold, for the last two.
    """
    file, found = str(path), user_path(path, str(path) if isinstance(path, str | os.PathLike) and str(path) else "file")
    try:
        check_regular(found, file)
        text = text_of(found, file)
    except FileNotFoundError:
        folder = found.parent
        names = [p.name for p in folder.glob("*.y*ml")] if folder.is_dir() else []
        close = nearest(found.name, names)
        hint = f"; did you mean {str(folder / close)!r}?" if close else ""
        raise InputError(f"{file}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError:  # no file system has a name with NUL in it
        raise InputError(f"{file!r}: no such file") from None
    return loads(text, file, wanted)


def loads(text: str, file: str = "<text>", wanted: str = EXPERIMENT) -> Document:
    """Parse YAML text; errors as `read`."""
    tree = compose(text, file)
    if tree is None:
        raise InputError(f"{file}: the file is empty, expected {wanted}")
    if not isinstance(tree, CommentedMap):
        raise InputError(f"{file}:1:1: found a {_kind(tree)}, expected {wanted}")
    return Document(file, tree, text)


def dumps(model: BaseModel, like: Document | None = None) -> str:
    """`model` as YAML. With `like`, its text stays as it is wherever what it says is still so."""
    full = model.model_dump(mode="json")
    data = _needed(model, full)
    yaml, tree = _writer(_Everything if like is None else _Numbers), _fresh(data)
    if like is not None:
        before = like.parse(type(model)).model_dump(mode="json")
        if before == full:
            return like.text
        tree = _merge(_unshared(like.tree, set()), before, data, full)
    out = StringIO()
    if like is not None and (indent := re.search(r"^( *)[^\s#-][^\n]*:\n(?: *#[^\n]*\n)*\1( *)- ", like.text, re.M)):
        yaml.indent(mapping=2, sequence=len(indent[2]) + 2, offset=len(indent[2]))
    yaml.dump(tree, out)
    return out.getvalue()


def written(data: Any) -> str:
    """Plain data as YAML that also readers of YAML 1.1, such as PyYAML, take for the same."""
    out = StringIO()
    _writer(_Everything).dump(data, out)
    return out.getvalue()


#: Text that some reader takes for a number, a date, a truth value or nothing unless it stands in quotes.
_QUOTED = re.compile(r"[-+.~=<0-9].*|(?i:y|n|yes|no|on|off|true|false|null)|", re.DOTALL)


class _Numbers(RoundTripRepresenter):
    """ruamel's writes YAML 1.2, where `1e-08` is a number."""

    def number(self, value: float) -> ScalarNode:
        text = repr(value)
        if "e" in text and "." not in text:
            text = text.replace("e", ".0e")
        return self.represent_scalar("tag:yaml.org,2002:float", text)


class _Everything(_Numbers):
    """In YAML 1.2 also `no`, `0x1F` and `12:30` are text. In the layout of a file such text stays as it was written."""

    def text(self, value: str) -> ScalarNode:
        style = '"' if not value.isprintable() else "'" if _QUOTED.fullmatch(value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Numbers.add_representer(float, _Numbers.number)
_Everything.add_representer(float, _Numbers.number)
_Everything.add_representer(str, _Everything.text)


def _writer(representer: type[RoundTripRepresenter]) -> YAML:
    yaml = YAML()
    yaml.Representer = representer
    yaml.width = 120
    return yaml


def _kind(value: object) -> str:
    return {list: "list", str: "text", int: "number", float: "number"}.get(type(_plain(value)), type(value).__name__)


# --------------------------------------------------------------------------------------------- what a tree holds


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
    return str(value.value) if isinstance(value, TaggedScalar) else value


def _told(value: Any) -> Any:
    """Plain data without the keys whose value is null."""
    if isinstance(value, dict):
        return {k: v if k in OPAQUE else _told(v) for k, v in value.items() if v is not None}
    return [_told(item) for item in value] if isinstance(value, list) else value


def _unfit(node: Any, loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """(place, what is wrong there) for keys that are no names and numbers that are none."""
    if isinstance(node, CommentedMap):
        for key, value in node.items():
            if not isinstance(key, str) or not _whole(key):
                yield loc, f"got the key {show(_plain(key))}, expected a name"
            else:
                yield from _unfit(value, (*loc, key))
    elif isinstance(node, CommentedSeq):
        for i, value in enumerate(node):
            yield from _unfit(value, (*loc, i))
    elif isinstance(node, str) and not _whole(node):
        yield loc, f"got {show(str(node))}, which holds half a character"
    elif isinstance(node, float) and not math.isfinite(node):
        yield loc, f"got {float(node)}, expected a finite number"
    elif isinstance(node, int) and abs(node) > LARGEST:
        yield loc, f"got {show(int(node))}, expected a whole number of at most 19 digits"


def _whole(text: str) -> bool:
    """Whether it can be written to a file; an escape such as "\\ud800" stands for half a character alone."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _mistaken(plain: Any, found: Any, loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """(place, what is wrong there) for what was taken as a number and is true or false, and the other way round."""
    if isinstance(plain, dict) and isinstance(found, BaseModel | dict):
        names = names_of(type(found)) if isinstance(found, BaseModel) else {}
        values = dict(found)
        for key, value in plain.items():
            if (own := names.get(key, key)) in values:
                yield from _mistaken(value, values[own], (*loc, key))
    elif isinstance(plain, list) and isinstance(found, list | tuple):
        for i, (value, taken) in enumerate(zip(plain, found, strict=False)):
            yield from _mistaken(value, taken, (*loc, i))
    elif isinstance(plain, bool) and isinstance(found, int | float) and not isinstance(found, bool):
        yield loc, f"got {show(plain)}, expected a number"
    elif isinstance(found, bool) and isinstance(plain, int | float) and not isinstance(plain, bool):
        yield loc, f"got {show(plain)}, expected true or false"


# ------------------------------------------------------------------------------------------------- writing a tree


def _needed(model: Any, full: Any) -> Any:
    """Of `full`, which is what `model` says, what is not the default, and what something is.

    A part that holds a number without effect, as evolution may leave one, is written out, so that what makes it so can
    be seen.
    """
    if isinstance(model, BaseModel):
        values = dict(model)
        told = {name for name, field in type(model).model_fields.items() if values[name] != field.default}
        if isinstance(model, Part) and told & model.unread():
            told = set(values)
        ordered = sorted(full, key=lambda name: name not in TELLING)  # what a part is comes before the rest of it
        return {name: _needed(values[name], full[name]) for name in ordered if name in told or name in TELLING}
    if isinstance(model, dict):
        return {key: _needed(value, full[key]) for key, value in model.items()}
    if isinstance(model, list | tuple):
        return [_needed(value, whole) for value, whole in zip(model, full, strict=True)]
    return full


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
    if id(node) in seen or (isinstance(node, CommentedMap) and len(node.merge)):
        return _fresh(_plain(node))
    seen.add(id(node))
    for key in list(node) if isinstance(node, CommentedMap) else range(len(node)):
        node[key] = _unshared(node[key], seen)
    return node


def _merge(old: Any, before: Any, data: Any, full: Any) -> Any:
    """`old` changed where what it said, `before`, is no longer so: keys that stand there stay, others are added."""
    if before == full:
        return old
    if isinstance(old, CommentedMap) and isinstance(before, dict) and isinstance(full, dict):
        written = {own: name for name, own in other_names().items() if name in old and own not in old}
        for key in [k for k in full if k not in before or before[k] != full[k]]:
            name = written.get(key, key)
            if name in old and old[name] is not None:
                old[name] = _merge(old[name], before.get(key), data.get(key, full[key]), full[key])
            elif key in data or name in old:
                old[name] = _fresh(data.get(key, full[key]))
        for name in [written.get(k, k) for k in before if k not in full]:
            old.pop(name, None)
        return old
    if isinstance(old, CommentedSeq) and isinstance(full, list) and len(old) == len(full) == len(before):
        for i, value in enumerate(full):
            old[i] = _merge(old[i], before[i], data[i], value)
        return old
    return _fresh(data)
