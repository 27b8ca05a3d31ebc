"""What a checkpoint or a training says of itself: its step, its architecture now and at the start, its growth."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from morphogen.blueprint.record import recorded
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import GrowthEvent, Size
from morphogen.cli import architecture
from morphogen.errors import InputError
from morphogen.escape import visible
from morphogen.inherit.checkpoint import BEGUN_AS, GREW_BY, Whole, load_whole
from morphogen.inherit.provenance import Provenance
from morphogen.report.wording import number
from morphogen.store.files import parsed_json
from morphogen.store.holding import holder_of
from morphogen.training import snapshots
from morphogen.training.ending import Ending
from morphogen.training.long_run import MODEL
from morphogen.trainingfolder import LOCK, read_record

#: What names of the record are shown as, where not as they are.
LABELS = {"at_start": "at the start", "ended_early": "ended early", "lineage_tokens": "tokens behind the weights"}


def of_checkpoint(path: Path) -> dict[str, Any]:
    """Step, tokens, architecture now and at the start, growth. InputError where it cannot be read."""
    return {"checkpoint": str(path), **_told(path, load_whole(path))}


def of_training(folder: Path) -> dict[str, Any]:
    """The same of a training as it stands now, of its latest sound checkpoint. It may be training meanwhile."""
    record = read_record(folder)
    found: dict[str, Any] = {}
    for _, path in snapshots.found(folder):
        try:
            found = _told(path, load_whole(path))
            break
        except InputError:  # half written, or removed meanwhile
            continue
    ended = found.get("step", 0) >= record.steps or "ended_early" in found
    holder, done = holder_of(folder, LOCK), ended and (folder / MODEL).exists()
    state = f"running ({holder})" if holder else "finished" if done else "stopped; --resume goes on"
    start = {"now": (size := architecture.size_of(_model(folder, record.experiment))), "at_start": size}
    return {"training": str(folder), "state": state, "steps": record.steps, "step": 0, "growth": [], **start, **found}


def _model(folder: Path, experiment: Mapping[str, Any]) -> Blueprint:
    return recorded(Blueprint, experiment.get("model"), f"{folder}: the recorded experiment: model")


def _told(path: Path, whole: Whole) -> dict[str, Any]:
    metadata, now = whole.metadata, architecture.size_of(whole.blueprint)
    begun, events = now, []
    try:
        if BEGUN_AS in metadata:
            begun = architecture.size_of(recorded(Blueprint, parsed_json(metadata[BEGUN_AS].encode()), str(path)))
        if GREW_BY in metadata:
            listed = parsed_json(metadata[GREW_BY].encode())
            events = [recorded(GrowthEvent, event, str(path)).model_dump(mode="json") for event in listed]
        steps = int(metadata.get("steps", "0"))
    except (ValueError, RecursionError, TypeError):
        raise InputError(f"{path}: what it says of its training cannot be read") from None
    behind, ending = Provenance.from_metadata(metadata, path), Ending.told(metadata, path)
    return {
        "of": metadata.get("candidate", ""),
        "step": steps,
        "tokens": behind.tokens.own,
        "lineage_tokens": behind.tokens.lineage,
        "tokenizer": behind.name,
        **({} if ending is None else {"ended_early": ending.reason}),
        "now": now,
        "at_start": begun,
        "growth": events,
    }


def in_words(told: Mapping[str, Any]) -> dict[str, Any]:
    """As it is shown; what it grew by is told apart."""
    shown = {LABELS.get(name, name): value for name, value in told.items() if name != "growth"}
    shown |= {LABELS.get(name, name): architecture.in_words(told[name]) for name in ("now", "at_start")}
    return shown | {"growth": f"{len(told['growth'])} events"}


def history(told: Mapping[str, Any]) -> Iterator[str]:
    """A line for everything that it grew by."""
    for plain in told["growth"]:
        event = GrowthEvent.model_validate(plain)
        lost = f"loss {event.loss:.4f} to {event.loss_after:.4f}, {'exact' if event.exact else 'lossy'}"
        back = ", taken back" if event.taken_back else ""
        yield visible(
            f"  step {event.own_steps}: {event.action} by {event.rule} ({event.reason}): "
            f"{_size(event.before)} to {_size(event.after)}; {lost}{back}"
        )


def _size(size: Size) -> str:
    mixtures = f", {sum(size.experts.values())} experts" if size.experts else ""
    return f"{number(size.params)} parameters, {size.layers} layers, dim {size.dim}{mixtures}"
