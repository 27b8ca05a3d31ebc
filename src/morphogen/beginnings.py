"""What a training begins with: the experiment that its source and options make. Called by `trainings`.

The source is an experiment's file, or a checkpoint: then the architecture and the weights are the checkpoint's, and the
rest is that of the experiment beside it.
"""

from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from morphogen.candidate import Record
from morphogen.data.prepare import tokenizer_of
from morphogen.data.tokenizers import PieceTokenizer, Tokenizer, from_json, named
from morphogen.errors import InputError
from morphogen.experiment import Data, Experiment, Shard, Train
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.paths import user_path
from morphogen.reading import located, read_experiment
from morphogen.store.files import write_atomic
from morphogen.store.ledger import RESOLVED

CHECKPOINT = ".safetensors"
YAML = (".yaml", ".yml")
#: In a training's folder: its tokenizer, where that was trained on other text than it is trained on now.
TOKENIZER = "tokenizer.json"


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


def asked(**options: Any) -> Asked:
    """The options of the command line. InputError for one that is out of range, by the name of its flag."""
    try:
        return Asked.model_validate(options)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        flag = "--" + str(wrong["loc"][0]).replace("_", "-")
        raise InputError(f"{flag}: got {wrong['input']!r}: {wrong['msg']}") from None


def experiment_of(source: str, asked: Asked, folder: Path) -> Experiment:
    """The experiment, its paths absolute. folder: of the training, where a tokenizer may have to be put.

    InputError for a source that cannot be read, and for options that do not fit.
    """
    path = user_path(source, "EXPERIMENT")
    if path.is_dir():
        raise InputError(f"{source}: is a folder, expected an experiment in YAML or a checkpoint ({CHECKPOINT})")
    experiment = _of_checkpoint(path, asked, folder) if path.suffix == CHECKPOINT else read_experiment(source)
    return located(_with_options(experiment, asked, keeps_tokenizer=path.suffix == CHECKPOINT))


def _of_checkpoint(path: Path, asked: Asked, folder: Path) -> Experiment:
    """Architecture and weights of a checkpoint, in the experiment that lies beside it or above."""
    _, blueprint, metadata = load_checkpoint(path)
    beside = experiment_beside(path)
    if beside is None and asked.data is None:
        raise InputError(f"{path}: there is no {RESOLVED} of its run or training beside it; name its text with --data")
    known = Experiment(model=blueprint) if beside is None else read_experiment(beside)
    tokenizer: Any = known.data.tokenizer
    if asked.data is not None:
        found = tokenizer_beside(path, metadata)
        if isinstance(found, PieceTokenizer) and (beside is None or not isinstance(tokenizer, str)):  # no new one
            place = folder / TOKENIZER
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(place, found.to_json().encode())
            tokenizer = str(place)
        elif beside is None:
            tokenizer = Provenance.from_metadata(metadata, path).name
    data = known.data.model_copy(update={"tokenizer": tokenizer})
    train = known.train.model_copy(update={"init_checkpoint": str(path.absolute()), "init_tokenizer": "same"})
    return known.model_copy(update={"model": blueprint, "train": train, "data": data})


def experiment_beside(path: Path) -> Path | None:
    """The experiment of the run or the training that a checkpoint belongs to: in its folder, or that above."""
    places = (folder / RESOLVED for folder in (path.parent, path.parent.parent))
    return next((place for place in places if place.is_file()), None)


def tokenizer_beside(path: Path, metadata: dict[str, str]) -> Tokenizer:
    """The tokenizer of a checkpoint. InputError where neither it nor what lies beside it tells."""
    behind = Provenance.from_metadata(metadata, path)
    if metadata.get("tokenizer_json"):
        found: Tokenizer = from_json(metadata["tokenizer_json"])
    elif (beside := experiment_beside(path)) is not None:
        found = tokenizer_of(read_experiment(beside).data)
    elif behind.name and not behind.name.startswith("bpe-"):
        found = named(behind.name)
    else:
        raise InputError(
            f"{path}: its tokenizer {behind.name or 'is unknown'!r} is not in it; put it back into the folder of its "
            f"run, or lay that run's {RESOLVED} beside it"
        )
    if behind.tokenizer is not None and found.digest != behind.tokenizer:
        raise InputError(
            f"{path}: it was trained with the tokenizer {behind.name!r} ({behind.tokenizer}), but what is found there "
            f"is another ({found.digest})"
        )
    return found


def _with_options(experiment: Experiment, asked: Asked, *, keeps_tokenizer: bool) -> Experiment:
    train: dict[str, Any] = {}
    data: dict[str, Any] = {}
    if asked.data is not None:
        data |= _text(asked.data)
        if keeps_tokenizer and not asked.data.endswith(YAML):
            data["tokenizer"] = experiment.data.tokenizer
    if asked.seed is not None:
        train["seed"] = asked.seed
    if asked.lr is not None:
        train |= {"lr": asked.lr, "optimizer": experiment.train.optimizer.model_copy(update={"lr": None})}
    if asked.accumulate is not None:
        train["accumulate"] = asked.accumulate
    data |= {name: value for name in ("batch_size", "seq_len") if (value := dict(asked)[name]) is not None}
    try:
        return experiment.model_copy(
            update={
                "train": Train.model_validate({**dict(experiment.train), **train}),
                "data": Data.model_validate({**dict(experiment.data), **data}),
            }
        )
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise InputError(f"{place or 'options'}: {found['msg']}") from None


def _text(source: str) -> dict[str, Any]:
    """The fields of `data` that --data changes: all of an experiment's, or the text alone."""
    if source.endswith(YAML):
        return dict(read_experiment(source).data)
    return {"shards": (Shard(source=source),), "eval_shards": (), "healing_shards": (), "healing_tokens": 0}
