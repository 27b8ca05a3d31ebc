"""Data sets of the Hugging Face hub: the only source that touches the network."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from morphogen.data.document import Document, Reader
from morphogen.data.records import Rows
from morphogen.errors import InputError

if TYPE_CHECKING:
    from morphogen.experiment import Shard

#: So long the hub has to answer at all, before a library asks it that would try for minutes.
ANSWER_SECONDS: Final = 2.5
#: So often a stream that broke is taken up again.
RETRIES: Final = 3
#: Answers of a proxy, or of a hub that is down.
_NO_ANSWER: Final = frozenset({407, 502, 503, 504})


def unreachable(kind: Literal["datasets", "models"], name: str) -> str | None:
    """Why the hub cannot be asked for `name`, known after `ANSWER_SECONDS` at most; None where it answers, and where
    the libraries are told not to ask."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    said: list[str | None] = []
    asking = threading.Thread(
        target=lambda: said.append(_asked(f"{constants.ENDPOINT}/api/{kind}/{name}")), daemon=True
    )
    asking.start()
    asking.join(ANSWER_SECONDS)  # looking up a name may take longer, and has no limit of its own
    reason = said[0] if said else f"no answer within {ANSWER_SECONDS:g} s"
    return reason and f"{constants.ENDPOINT} cannot be reached ({reason})"


def _asked(url: str) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return str(error) if error.code in _NO_ANSWER else None
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)  # certificates: see the library
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def is_fetched(name: str, files: Iterable[str]) -> bool:
    """Whether one of the files of a repository is in the hub's own cache."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def rows_of(name: str, config: str | None, shard: "Shard", reader: Reader) -> Iterator[Document]:
    """The rows of a data set on the hub, or of a folder or script-less data set here, as they are streamed."""
    if not Path(name).exists() and (reason := unreachable("datasets", name)) is not None:
        raise InputError(f"{reader.place}: {reason}; check the network, or use a source that is on this machine")
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
