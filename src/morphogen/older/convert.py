"""`morphogen convert`: a file of the older system as one of ours, and what became of every field of it."""

from collections.abc import Iterator
from textwrap import wrap
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from morphogen.availability import Available
from morphogen.blueprint.mistakes import what
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.templates import TemplateFile
from morphogen.blueprint.yaml import dumps, read
from morphogen.errors import InputError
from morphogen.escape import visible
from morphogen.experiment import Experiment
from morphogen.foresight import nominal
from morphogen.older.experiments import experiment
from morphogen.older.fields import Fields, How, Note
from morphogen.older.templates import templates
from morphogen.parts.contract.registry import TAG

M = TypeVar("M", bound=BaseModel)
WANTED = "an experiment (model, train, data, ...) or templates of the older system"


class Converted(NamedTuple):
    """A file of ours, as text, and what became of every field of the older one."""

    text: str
    notes: tuple[Note, ...]

    def of(self, how: How, *, idle: bool = False) -> list[Note]:
        """The notes of one sort. idle: of what is dropped, that which had no effect."""
        return [note for note in self.notes if note.how == how and note.idle == idle]

    @property
    def lossless(self) -> bool:
        """Whether nothing was lost."""
        return not self.of("approximated") and not self.of("dropped")


def convert(file: str) -> Converted:
    """Reads a file of the older system and says it in our terms.

    Raises:
        InputError: The file cannot be read or is none of the older system's; it holds what neither of the two can mean,
            with line and column; or what it becomes cannot be here, with the place in our file.
    """
    document = read(file, WANTED)
    document.check()
    notes: list[Note] = []
    old = Fields(document, document.tree, (), notes)
    if old.present("templates") and not old.present("model"):
        found = templates(old)
        if not found["templates"]:
            raise InputError(f"{file}: none of its templates can be said here: {notes[-1].said}")
        return Converted(dumps(_parsed(TemplateFile, found, file)), tuple(notes))
    if not old.present("model"):
        raise InputError(f"{file}: no model, expected {WANTED}")
    made = _parsed(Experiment, experiment(old), file)
    made = _measurable(made, notes, file)
    return Converted(_head(file, notes) + dumps(made), tuple(notes))


def _parsed(cls: type[M], plain: dict[str, Any], file: str) -> M:
    try:
        return cls.model_validate(plain)
    except ValidationError as error:
        lines = []
        for detail in error.errors(include_url=False):
            place = ".".join(str(step) for step in detail["loc"] if not str(step).startswith(TAG))
            lines.append(f"{file}: cannot be said here: {place}: {what(cls, detail, detail['loc'])}")
        raise InputError("\n".join(dict.fromkeys(lines))) from None


def _measurable(made: Experiment, notes: list[Note], file: str) -> Experiment:
    """Without objectives and composites that the root has no figure for, as ours must."""
    model: Blueprint = nominal(made)[0]
    available = Available(made, model)
    evolution = made.evolution
    kept = dict(evolution.composite_metrics)
    for name, composite in evolution.composite_metrics.items():
        if name in available.descendants or not available.descendants.issuperset(composite.names):
            del kept[name]
            said = "the root has not all the figures that it is made of, or one is called so already"
            notes.append(Note("dropped", f"evolution.composite_metrics ({name})", "", said))
        else:
            available.add(name, composite.names)
    objectives = {name: way for name, way in evolution.objectives.items() if name in available.root}
    for name in (name for name in evolution.objectives if name not in objectives):
        said = "the root has no such figure, and every candidate must be judged by it"
        notes.append(Note("dropped", f"evolution.objectives ({name})", "", said))
    if not objectives:
        objectives = {"ppl": "min", "params": "min"}
        notes.append(
            Note("approximated", "evolution.objectives", "evolution.objectives", "ppl and params: none is left")
        )
    plain = made.model_dump(mode="json")
    plain["evolution"] |= {
        "composite_metrics": {name: plain["evolution"]["composite_metrics"][name] for name in kept},
        "objectives": objectives,
    }
    return _parsed(Experiment, plain, file)


def _head(file: str, notes: list[Note]) -> str:
    lines = [f"Converted from {visible(file.rpartition('/')[2])} of transformer-evolution-llm by `morphogen convert`."]
    for how, said in (("approximated", "Approximated"), ("dropped", "Dropped")):
        found = [note for note in notes if note.how == how and not note.idle]
        lines += [f"{said}:"] if found else []
        lines += [each for line in told(found) for each in _wrapped(line)]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _wrapped(line: str) -> list[str]:
    return wrap(visible(line), 116, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def told(notes: list[Note]) -> Iterator[str]:
    """A line for each thing that is said, with the places where it is so; those of blocks are counted."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for note in notes:
        groups.setdefault((_pattern(note.place), _pattern(note.to), note.said), []).append(note.place)
    for (pattern, to, said), places in groups.items():
        place = places[0] if len(places) == 1 else f"{pattern} ({len(places)} times)"
        yield place + (f" -> {to}" if to and to != pattern else "") + (f": {said}" if said else "")


def _pattern(place: str) -> str:
    """The place whatever the number."""
    shown, rest = "", place
    while "[" in rest and "]" in rest:
        before, _, after = rest.partition("[")
        shown, rest = f"{shown}{before}[*]", after.partition("]")[2]
    return shown + rest
