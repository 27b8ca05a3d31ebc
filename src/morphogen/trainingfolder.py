"""A training's folder: what lies in it, what its record says, whether it may be gone on with. Called by `trainings`.

DIR/training.json       what the training is: its id, its experiment as resolved, what was asked for, its text
DIR/experiment.yaml     that experiment
DIR/tokenizer.json      its tokenizer, where that was trained on other text
DIR/checkpoints/        step-00000500.safetensors, ...: all that it goes on from
DIR/steps.csv evals.csv usage.csv growth.csv growth.log
DIR/model.safetensors   the finished model, as a candidate's checkpoint is
DIR/donors/             of layers of other models, what the finished model needs
DIR/growth.png          how it went
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from morphogen import resuming
from morphogen.beginnings import TOKENIZER, Asked
from morphogen.blueprint.diff import changes
from morphogen.blueprint.record import recorded, understood
from morphogen.candidate import Record, Tokens
from morphogen.data.prepare import PreparedData, text_of
from morphogen.data.tokenizers import PieceTokenizer
from morphogen.differences import Difference, differences, words
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment
from morphogen.inherit import excerpts
from morphogen.inherit.memory import memory_in
from morphogen.reading import located, placeless
from morphogen.store.files import canonical_json, parsed_json, write_atomic
from morphogen.store.ledger import FILE as LEDGER
from morphogen.store.ledger import RESOLVED
from morphogen.store.ordinary import check_own, read_ordinary
from morphogen.store.places import TRAINING
from morphogen.training import journal, snapshots
from morphogen.training.ending import GUARDS
from morphogen.training.long_run import MODEL

RECORD, FORMAT, LOCK, PICTURE = TRAINING, "morphogen-training-2", "training.lock", "growth.png"
#: What earlier versions wrote; their checkpoints lack what this one goes on from.
OLDER = ("morphogen-training-1",)
FILES = (RECORD, RESOLVED, LOCK, MODEL, TOKENIZER, PICTURE, *journal.FILES)
FOLDERS = (snapshots.FOLDER, journal.BOARD, excerpts.FOLDER)
#: Settings that a training may be gone on with otherwise than it was begun: those that only say when it is stopped.
MAY_DIFFER = frozenset(f"train.{name}" for name in ("max_tokens", "ppl_stop_threshold", *GUARDS))
#: A message names at most so many differences.
SHOWN = 3
#: No machine computes with more.
MOST_THREADS = 4096


class Begun(Record):
    """What `training.json` holds. begun: tokens behind the weights that it began with. memory: of their growth.
    init_checkpoint: their checksum. paths: where its files lay, and how that is seen from its folder."""

    format: str
    id: str
    steps: PositiveInt
    asked: Asked
    experiment: dict[str, Any]
    data: dict[str, Any]
    begun: Tokens
    memory: str
    init_checkpoint: str | None
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    paths: dict[str, str]
    versions: dict[str, str]


def check_usable(folder: Path, resume: bool) -> None:
    """RunError unless a training may be begun in `folder`, or with `resume` gone on with there."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, expected a folder for the training")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    check_own(folder, FILES, FOLDERS)
    if LEDGER in names:
        raise RunError(f"{folder}: holds a run of a search; choose another --output-dir")
    if RECORD in names:
        if not resume:
            raise RunError(
                f"{folder}: holds a training already; add --resume to go on with it, or choose another --output-dir"
            )
        return
    strangers = sorted(name for name in names if name not in (*FILES, *FOLDERS) and not name.startswith("."))
    if strangers or MODEL in names:
        first = strangers[0] if strangers else MODEL
        raise RunError(f"{folder}: not empty ({first}, ...) and not a training; choose another --output-dir")


def read_record(folder: Path) -> Begun:
    """What a training's folder says of it. InputError where that cannot be read."""
    path = folder / RECORD
    try:
        told = parsed_json(read_ordinary(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if isinstance(told, dict) and told.get("format") in OLDER:
        raise InputError(
            f"{path}: is of an older format, {told['format']!r}, and this version goes on from {FORMAT!r}; go on with "
            "the version that wrote it, or begin anew in another --output-dir"
        )
    found = recorded(Begun, told, str(path))
    memory_in(found.memory, f"{path}: memory")
    if found.format != FORMAT:
        raise InputError(f"{path}: format is {found.format!r}, expected {FORMAT!r}")
    return found


def check_same(folder: Path, record: Begun, experiment: Experiment, prepared: PreparedData) -> None:
    """RunError unless `experiment`, its text and its first weights are those that the training in `folder` was begun
    with; InputError where the record cannot be read. Weights that are gone are not asked for."""
    there = begun_with(folder, record)
    wrong = [f"{path} is {words(old)} there and {words(new)} here" for path, old, new in settings(there, experiment)]
    wrong += resuming.other_text(folder / RECORD, record.data, text_record(prepared))
    if Path(experiment.train.init_checkpoint or "").exists():
        wrong += resuming.other_weights(record.init_checkpoint, experiment)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise RunError(
            f"{folder}: holds another training: {'; '.join(wrong[:SHOWN])}{more}. With --resume may change: --steps, "
            f"--device, --early-stop, how often it is measured and kept; go on with {folder / RESOLVED}, or choose "
            "another --output-dir"
        )


def text_record(prepared: PreparedData) -> dict[str, Any]:
    """What a record says of the text."""
    found: dict[str, Any] = parsed_json(canonical_json(prepared.environment()).encode())
    return found


def begun_with(folder: Path, record: Begun) -> Experiment:
    """The experiment that a training was begun with. InputError where it cannot be read."""
    return understood(Experiment, record.experiment, f"{folder / RECORD}: the recorded experiment")[0]


def put_tokenizer(folder: Path, tokenizer: PieceTokenizer | None) -> None:
    """Lays a training's tokenizer into its folder, unless it lies there. RunError where another one does."""
    if tokenizer is None:
        return
    path, text = folder / TOKENIZER, tokenizer.to_json().encode()
    try:
        if path.exists() and read_ordinary(path) != text:
            raise RunError(f"{path}: is the tokenizer of something else; take it away, or choose another --output-dir")
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not path.exists():
        write_atomic(path, text)


def write_record(folder: Path, record: Begun) -> None:
    """Puts it on disk. RunError where it cannot be written."""
    write_atomic(folder / RECORD, (canonical_json(record.model_dump(mode="json"), indent=2) + "\n").encode())


def identity(experiment: Experiment, data: Mapping[str, Any], init: str | None) -> str:
    """Of a training: what it trains, on what, from which weights."""
    plain = placeless(located(experiment)).model_dump(mode="json", exclude={"evolution"})
    whole = canonical_json([plain, text_of(data), init])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


def settings(there: Experiment, here: Experiment) -> list[Difference]:
    """What of two trainings' experiments differs that may not; where files lie may, and `train.bf16: auto` is what it
    was settled to there."""
    there, here = there.in_precision(False), here.in_precision(there.train.in_bf16)
    one, other = (placeless(located(experiment)) for experiment in (there, here))
    plain, given = (it.model_dump(mode="json", include={"train", "data"}) for it in (one, other))
    rest = differences(plain, given, MAY_DIFFER)
    return [*((f"model.{c.path}", c.before, c.after) for c in changes(one.model, other.model)), *rest]
