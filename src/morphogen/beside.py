"""What belongs to a checkpoint and lies in it, beside it or above: its experiment, its tokenizer."""

from pathlib import Path

from morphogen.data.prepare import tokenizer_of
from morphogen.data.tokenizers import Tokenizer, from_json, named
from morphogen.errors import InputError
from morphogen.inherit.provenance import Provenance
from morphogen.reading import read_experiment
from morphogen.store.ledger import RESOLVED

#: In a checkpoint's metadata: its tokenizer's definition, where its name does not tell it.
TEXT = "tokenizer_json"


def experiment_beside(path: Path) -> Path | None:
    """The experiment of the run or the training that a checkpoint belongs to: in its folder, or that above."""
    places = (folder / RESOLVED for folder in (path.parent, path.parent.parent))
    return next((place for place in places if place.is_file()), None)


def tokenizer_beside(path: Path, metadata: dict[str, str]) -> Tokenizer:
    """The tokenizer of a checkpoint. InputError where neither it nor what lies beside it tells."""
    behind = Provenance.from_metadata(metadata, path)
    if metadata.get(TEXT):
        found: Tokenizer = from_json(metadata[TEXT])
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
