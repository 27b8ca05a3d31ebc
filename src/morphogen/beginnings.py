"""What a training begins with: the experiment that its source and options make. Called by `trainings`.

The source is an experiment's file, or a checkpoint: then the architecture and the weights are the checkpoint's, and the
rest is that of the experiment beside it.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from morphogen.beside import TEXT, experiment_beside, tokenizer_beside
from morphogen.candidate import Record
from morphogen.data.tokenizers import PieceTokenizer
from morphogen.errors import InputError
from morphogen.experiment import Data, Experiment, Shard, Train
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.paths import absolute_path, user_path
from morphogen.reading import located, located_source, path_again, read_experiment
from morphogen.store.ledger import RESOLVED

S = TypeVar("S", Train, Data)
CHECKPOINT = ".safetensors"
YAML = (".yaml", ".yml")
#: In a training's folder: its tokenizer, where that was trained on other text than it is trained on now.
TOKENIZER = "tokenizer.json"
#: The option that names other text.
DATA = "--data"


class Asked(Record):
    """Options that change the experiment of a training; None: as it stands there."""

    data: str | None = None
    seed: NonNegativeInt | None = None
    lr: PositiveFloat | None = None
    batch_size: PositiveInt | None = None
    seq_len: PositiveInt | None = None
    accumulate: PositiveInt | None = None

    def over(self, before: "Asked") -> "Asked":
        """What is asked for now, and for the rest what was asked for before."""
        return Asked.model_validate(
            dict(before) | {name: value for name, value in dict(self).items() if value is not None}
        )

    def located(self) -> Self:
        """The same wherever the command is started: the text's path absolute. InputError for what is no source."""
        if self.data is None:
            return self
        if self.data.endswith(YAML):
            return self.replace(data=str(absolute_path(self.data, DATA)))
        return self.replace(data=located_source(self.data, DATA))

    def found_again(self, folder: Path) -> Self:
        """What was asked for when the training in `folder` was begun, which may have been moved with its text."""
        return self if self.data is None else self.replace(data=path_again(self.data, folder))


def asked(**options: Any) -> Asked:
    """The options of the command line. InputError for one that is out of range, by the name of its flag."""
    try:
        return Asked.model_validate(options)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        flag = "--" + str(wrong["loc"][0]).replace("_", "-")
        raise InputError(f"{flag}: got {wrong['input']!r}: {wrong['msg']}") from None


class Beginning(NamedTuple):
    """An experiment, its paths absolute. tokenizer: to be put where the experiment says that it lies; None where it
    lies there already, or has a name."""

    experiment: Experiment
    tokenizer: PieceTokenizer | None = None


def beginning_of(source: str, asked: Asked, folder: Path) -> Beginning:
    """What a training in `folder` begins with, or goes on with.

    InputError for a source that cannot be read, and for options that do not fit.
    """
    path = user_path(source, "EXPERIMENT")
    if path.is_dir():
        raise InputError(f"{source}: is a folder, expected an experiment in YAML or a checkpoint ({CHECKPOINT})")
    if path.suffix != CHECKPOINT:
        return Beginning(located(_with_options(read_experiment(source), asked, keeps_tokenizer=False)))
    found = _of_checkpoint(path, asked, folder)
    return found._replace(experiment=located(_with_options(found.experiment, asked, keeps_tokenizer=True)))


def _of_checkpoint(path: Path, asked: Asked, folder: Path) -> Beginning:
    """Architecture and weights of a checkpoint, in the experiment that lies beside it or above."""
    _, blueprint, metadata = load_checkpoint(path)
    beside = experiment_beside(path)
    if beside is None and asked.data is None:
        raise InputError(f"{path}: there is no {RESOLVED} of its run or training beside it; name its text with {DATA}")
    known = Experiment(model=blueprint) if beside is None else read_experiment(beside)
    tokenizer: Any = known.data.tokenizer
    carried: PieceTokenizer | None = None
    if asked.data is not None:
        found = tokenizer_beside(path, metadata)
        trained_there = beside is not None and not isinstance(tokenizer, str)
        if isinstance(found, PieceTokenizer) and (metadata.get(TEXT) or trained_there):
            tokenizer, carried = str(folder.absolute() / TOKENIZER), found
        elif beside is None:
            tokenizer = Provenance.from_metadata(metadata, path).name
    data = known.data.model_copy(update={"tokenizer": tokenizer})
    train = known.train.model_copy(update={"init_checkpoint": str(path.absolute()), "init_tokenizer": "same"})
    return Beginning(known.model_copy(update={"model": blueprint, "train": train, "data": data}), carried)


def _with_options(experiment: Experiment, asked: Asked, *, keeps_tokenizer: bool) -> Experiment:
    train: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if asked.data is not None:
        data |= _text(asked.data)
        if keeps_tokenizer:
            data["tokenizer"] = experiment.data.tokenizer
    if asked.seed is not None:
        train["seed"] = asked.seed
    if asked.lr is not None:
        train |= {"lr": asked.lr, "optimizer": experiment.train.optimizer.model_copy(update={"lr": None})}
    if asked.accumulate is not None:
        train["accumulate"] = asked.accumulate
    data |= {name: value for name in ("batch_size", "seq_len") if (value := dict(asked)[name]) is not None}
    place = "data." if asked.data is None else f"{DATA}: "
    return experiment.model_copy(
        update={
            "train": _section(Train, {**dict(experiment.train), **train}, "train."),
            "data": _section(Data, {**dict(experiment.data), **data}, place),
        }
    )


def _section(cls: type[S], fields: dict[str, Any], place: str) -> S:
    """A section of an experiment. InputError, which begins with `place`, where its fields don't fit."""
    try:
        return cls.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        path = (place + ".".join(map(str, found["loc"]))).rstrip(".: ")
        raise InputError(f"{path}: {found['msg'].removeprefix('Value error, ')}") from None


def _text(source: str) -> dict[str, Any]:
    """The fields of `data` that --data changes: all of an experiment's, or the text alone, called as its file is
    wherever that lies."""
    if source.endswith(YAML):
        return dict(read_experiment(source).data)
    shard = Shard(source=source)
    if shard.is_local and (name := Path(source).name):
        shard = Shard(source=source, name=Shard(source=name).name)
    return {"shards": (shard,), "eval_shards": (), "healing_shards": (), "healing_tokens": 0}
