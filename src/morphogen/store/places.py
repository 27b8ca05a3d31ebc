"""Where files lay when a run or a training was begun, and where they are now: it may have been moved with them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from morphogen.store.files import parsed_json
from morphogen.store.ordinary import read_ordinary

#: In a run's folder: what else its numbers depend on, and where the files of its experiment lay.
ENVIRONMENT = "environment.json"
#: Likewise in a training's, and in the folder of a fused model, where it also says how that is made.
TRAINING, LAYOUT = "training.json", "layout.json"

#: What lists of layers of other models are called, in blueprints and in reports.
LISTS = ("experts", "donors")


def known_paths(folder: Path) -> dict[str, str]:
    """Where files of the run, the training or the fused model in `folder` lay, and how that was seen from there."""
    for name in (ENVIRONMENT, TRAINING, LAYOUT):
        with suppress(OSError, ValueError, RecursionError):
            told = parsed_json(read_ordinary(folder / name))
            known = told.get("paths") if isinstance(told, dict) else None
            if isinstance(known, dict):
                return {path: seen for path, seen in known.items() if isinstance(seen, str)}
    return {}


def path_now(path: str, known: Mapping[str, str], folder: Path) -> str:
    """Where a file is that lay at `path`."""
    if path in known and not os.path.exists(path):
        there = os.path.normpath(folder.resolve() / known[path])
        return there if os.path.exists(there) else path
    return path


def moved_paths(folder: Path) -> dict[str, str]:
    """Paths of the run or the training in `folder` that are gone -> where the same files lie now."""
    known = known_paths(folder)
    now = {path: path_now(path, known, folder) for path in known}
    return {path: there for path, there in now.items() if there != path}


def with_donors(data: Any, now: Mapping[str, str]) -> Any:
    """Plain data with the models changed that layers are of, wherever a blueprint or a report in it names one."""
    if isinstance(data, dict):
        return {
            name: [_at(one, now) for one in value]
            if name in LISTS and isinstance(value, list)
            else with_donors(value, now)
            for name, value in data.items()
        }
    return [with_donors(item, now) for item in data] if isinstance(data, list) else data


def _at(named: Any, now: Mapping[str, str]) -> Any:
    """A layer of a model, where that is now; anything else as in `with_donors`."""
    if isinstance(named, dict) and "layer" in named and isinstance(model := named.get("model"), str):
        return {**named, "model": now.get(model, model)}
    return with_donors(named, now)
