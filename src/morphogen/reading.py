"""An experiment from its file, with every path in it absolute: relative ones are meant from the file's own folder.

What stands in an experiment travels: into jobs, into the ledger, to other machines and working directories. So paths
are made absolute once, here, and nothing after that depends on where a command was started.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from morphogen import plugins
from morphogen.blueprint.mistakes import Loc, listed
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import Document, read
from morphogen.errors import InputError
from morphogen.experiment import Experiment, Shard
from morphogen.knobs import Remark, knobs
from morphogen.parts.contract.part import Part
from morphogen.parts.foreign.foreign import Foreign
from morphogen.paths import absolute_path, user_path
from morphogen.store.places import known_paths, path_now

#: A path's new text, given where it stands in the experiment and its text.
Change = Callable[[Loc, str], str]
#: Shards of these fields of `data` name sources.
ROLES = ("shards", "eval_shards", "healing_shards")
HUB = "hf:"


def read_experiment(file: str | os.PathLike[str]) -> Experiment:
    """The experiment in a YAML file, its paths absolute; in the folder of a run that was moved, as `found_again`.

    Raises:
        InputError: The file cannot be read, or one line with file, line and column for every mistake in it.
    """
    return experiment_in(read(file), file)


def experiment_in(document: Document, file: str | os.PathLike[str]) -> Experiment:
    """The experiment in a file that was read; as `read_experiment`."""
    if holds_templates(document):
        raise InputError(f"{file}: a file of templates, expected an experiment; one names it as evolution.templates")
    folder = user_path(file, str(file)).parent
    experiment = document.parse(Experiment)
    if wrong := [document.at(remark.loc, remark.said) for remark in knobs(experiment) if remark.refused]:
        raise InputError(listed(wrong))
    experiment = located(experiment, folder, lambda loc: document.at(loc, "").removesuffix(": "))
    return found_again(experiment, folder)


def holds_templates(document: Document) -> bool:
    """Whether it holds templates, and no experiment."""
    return "templates" in document.tree and "model" not in document.tree


#: A line that says what is wrong at a place of an experiment, such as `train.lr: got ...`.
_PLACE = re.compile(r"((?:model|train|data|evolution|priors)(?:\.\w+|\[\d+\])*)[: ]")


@contextmanager
def placed(file: str | os.PathLike[str]) -> Iterator[None]:
    """Within, what is wrong in the experiment that was read from `file` is told with its line and column there."""
    try:
        yield
    except InputError as error:
        lines = str(error).splitlines()
        places = [_PLACE.match(line) for line in lines]
        if not any(places):
            raise
        document = read(file)
        told = [
            line if found is None else f"{document.spot(_steps(found[1]))} {line}"
            for line, found in zip(lines, places, strict=True)
        ]
        raise InputError("\n".join(told)) from None


def said_of(file: str | os.PathLike[str], remarks: Sequence[Remark]) -> list[str]:
    """Each remark in one line, with its place in the file."""
    if not remarks:
        return []
    document = read(file)
    return list(dict.fromkeys(document.at(remark.loc, remark.said) for remark in remarks))


def _steps(path: str) -> Loc:
    """A dotted path taken apart."""
    return tuple(int(step[1:-1]) if step[0] == "[" else step for step in re.findall(r"\w+|\[\d+\]", path))


def dotted(loc: Loc) -> str:
    """A place in an experiment as a user writes it: `data.shards[0].source`."""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def located(experiment: Experiment, folder: Path | None = None, place: Callable[[Loc], str] = dotted) -> Experiment:
    """The experiment with every local path made absolute; names of the hub and built-in sources stay as they are.

    A name that could be either (a tokenizer, `hf:NAME`) is a path where such a file or folder exists, or where it can
    only be one: it begins with `~`, `.` or `/`, or ends in `.json`.

    Args:
        experiment: Any, also one that is located already, which stays as it is.
        folder: What relative paths are meant from; the working directory by default.
        place: How to name a place in messages; a dotted path by default.

    Raises:
        InputError: A path is empty, or under the home of nobody known here.
    """

    return with_paths(experiment, *_absolute(folder, place))


def located_source(text: str, place: str) -> str:
    """One source of text as `located`. InputError, named by `place`, where it is none."""
    try:
        shard = Shard(source=text)
    except ValidationError as error:
        raise InputError(f"{place}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return _with_source((), shard, *_absolute(None, lambda loc: place)).source


def _absolute(folder: Path | None, place: Callable[[Loc], str]) -> tuple[Change, Change]:
    """What makes a path absolute, and what a name that may be one."""

    def absolute(loc: Loc, text: str) -> str:
        return str(absolute_path(text, place(loc), folder))

    def if_there(loc: Loc, name: str) -> str:
        path = absolute(loc, name)
        return path if name.startswith(("~", ".", "/")) or name.endswith(".json") or os.path.exists(path) else name

    return absolute, if_there


def local_paths(experiment: Experiment) -> dict[Loc, str]:
    """Where the paths of a located experiment stand, and what they are."""
    found: dict[Loc, str] = {}

    def note(loc: Loc, text: str) -> str:
        if os.path.isabs(text):
            found[loc] = text
        return text

    with_paths(experiment, note, note)
    return found


def moved(experiment: Experiment, now: dict[str, str]) -> Experiment:
    """The experiment with the paths that `now` names replaced by what it gives for them."""

    def replaced(loc: Loc, text: str) -> str:
        return now.get(text, text)

    return with_paths(experiment, replaced, replaced)


def found_again(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment of the run or the training in `folder`; for paths that are gone, those where the same files lie as
    seen from there: it may have been moved together with them."""
    known = known_paths(folder)
    return moved(experiment, {path: path_now(path, known, folder) for path in local_paths(experiment).values()})


def path_again(path: str, folder: Path) -> str:
    """One path of the run or the training in `folder`, as `found_again`."""
    return path_now(path, known_paths(folder), folder)


def placeless(experiment: Experiment) -> Experiment:
    """The located experiment without where its files lie: equal for two that differ in that alone."""

    def anywhere(loc: Loc, text: str) -> str:
        return os.sep if os.path.isabs(text) else text

    return with_paths(experiment, anywhere, anywhere)


def with_paths(experiment: Experiment, path: Change, name: Change) -> Experiment:
    """The experiment with what may be a path changed: `path` where a field can hold nothing else, `name` where it may
    also be the name of a data set or tokenizer."""
    data, train, evolution = experiment.data, experiment.train, experiment.evolution
    roles = {
        role: tuple(_with_source(("data", role, i), shard, path, name) for i, shard in enumerate(dict(data)[role]))
        for role in ROLES
    }
    changes: dict[str, dict[str, Any]] = {"data": {**roles}, "train": {}, "evolution": {}}
    if isinstance(data.tokenizer, str) and data.tokenizer not in ("bytes", *plugins.names(plugins.TOKENIZERS)):
        changes["data"]["tokenizer"] = name(("data", "tokenizer"), data.tokenizer)
    if train.init_checkpoint is not None:
        changes["train"]["init_checkpoint"] = path(("train", "init_checkpoint"), train.init_checkpoint)
    if isinstance(evolution.templates, str):
        changes["evolution"]["templates"] = path(("evolution", "templates"), evolution.templates)
    if (proposer := evolution.proposer) is not None:
        place: Loc = ("evolution", "proposer", "command")
        words = tuple(name((*place, i), word) for i, word in enumerate(proposer.command))
        changes["evolution"]["proposer"] = proposer.model_copy(update={"command": words})
    if evolution.donors:
        donors = tuple(name(("evolution", "donors", i), donor) for i, donor in enumerate(evolution.donors))
        changes["evolution"]["donors"] = donors
    return experiment.model_copy(
        update={
            "model": with_sources(experiment.model, name),
            "data": data.model_copy(update=changes["data"]),
            "train": train.model_copy(update=changes["train"]),
            "evolution": evolution.model_copy(update=changes["evolution"]),
        }
    )


def with_sources(model: Blueprint, name: Change) -> Blueprint:
    """The blueprint with the models changed that it has layers of."""
    blocks = tuple(
        block.model_copy(
            update={
                "extras": tuple(
                    _with_models(("model", "blocks", i, "extras", j), extra, name)
                    for j, extra in enumerate(block.extras)
                )
            }
        )
        if any(isinstance(extra, Foreign) for extra in block.extras)
        else block
        for i, block in enumerate(model.blocks)
    )
    return model if blocks == model.blocks else model.model_copy(update={"blocks": blocks})


def _with_models(loc: Loc, extra: Part, name: Change) -> Part:
    if not isinstance(extra, Foreign):
        return extra
    experts = tuple(
        expert.model_copy(update={"model": name((*loc, "experts", k, "model"), expert.model)})
        for k, expert in enumerate(extra.experts)
    )
    return extra.model_copy(update={"experts": experts})


def _with_source(loc: Loc, shard: Shard, path: Change, name: Change) -> Shard:
    """The shard under the name it had: what its figures are called is how its source was written."""
    changes = {"source": shard.source, "name": shard.name}
    if shard.cache_path is not None:
        changes["cache_path"] = path((*loc, "cache_path"), shard.cache_path)
    if shard.source.startswith(HUB):
        found, colon, config = shard.source.removeprefix(HUB).partition(":")
        if found:
            changes["source"] = HUB + name((*loc, "source"), found) + colon + config
    elif shard.is_local:
        changes["source"] = path((*loc, "source"), shard.source)
    return shard.model_copy(update=changes)
