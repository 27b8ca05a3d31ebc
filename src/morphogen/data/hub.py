"""Data sets of the Hugging Face hub: the only source that touches the network."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from morphogen.data.document import Document, Reader
from morphogen.data.records import Rows
from morphogen.errors import InputError
from morphogen.reach import unreachable

if TYPE_CHECKING:
    from morphogen.experiment import Shard

#: So often a stream that broke is taken up again.
RETRIES: Final = 3


def is_fetched(name: str, files: Iterable[str]) -> bool:
    """Whether one of the files of a repository is in the hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def check_reachable(name: str, place: str) -> None:
    """InputError, which begins with `place`, where the hub cannot be asked for a data set."""
    if (reason := unreachable("datasets", name)) is not None:
        raise InputError(f"{place}: {reason}; check the network, or use a source that is on this machine")


def rows_of(name: str, config: str | None, shard: "Shard", reader: Reader) -> Iterator[Document]:
    """The rows of a data set on the hub, or of a folder or script-less data set here, as they are streamed."""
    if not Path(name).exists():
        check_reachable(name, reader.place)
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = RETRIES
    rows = Rows(reader)
    try:
        found = datasets.load_dataset(name, config, split=shard.split, revision=shard.revision, streaming=True)
        for number, row in enumerate(found):
            if (text := rows.text(row, f"row {number}")) is not None:
                yield Document(f"{shard.split}:{number}", text)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        wanted = f"name {name!r}, config {config!r}, revision {shard.revision!r}, split {shard.split!r}"
        raise InputError(
            f"{reader.place}: datasets cannot read it ({wanted}): {reason}. Check the name and the network, or use "
            "another source"
        ) from error
