"""The token store: documents split by hash, encoded once, kept as memory-mapped files in a cache folder.

Every file is named by a hash of what decides its content, written to a temporary file, fsynced and renamed. Two
processes that prepare the same data at once therefore write the same bytes under the same names, and neither can see
half a file. Files are checked against their recorded hashes at every start and built anew when they differ; the whole
folder may be deleted at any time.
"""

import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data import corpora
from morphogen.data.corpora import Document
from morphogen.data.tokenizers import Tokenizer
from morphogen.errors import InputError, RunError
from morphogen.paths import user_path
from morphogen.store.files import atomic

if TYPE_CHECKING:
    from morphogen.experiment import Shard, Split

SplitName = Literal["train", "eval", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "eval", "test")
#: Part of every file name, so that caches written by another version of this module are left alone.
FORMAT: Final = 1
DOCUMENTS_AT_ONCE: Final = 256
_DIGEST_BYTES = 16


class Hashed(NamedTuple):
    """A document with the digest of its text, and the digest that decides its split (its origin's, or its own)."""

    digest: bytes
    decides_split: bytes
    text: str
    n_bytes: int


@dataclass(frozen=True)
class Corpus:
    """What a source turned out to hold: `digest` is over the text of its distinct documents, in order."""

    digest: str
    documents: int
    duplicates: int
    n_bytes: int


@dataclass(frozen=True)
class TokenFile:
    """Tokens of one split, packed: each document's ids, then end of text."""

    path: str
    tokens: int
    documents: int
    dtype: Literal["uint16", "uint32"]

    def open(self) -> NDArray[np.unsignedinteger[Any]]:
        """The tokens, memory-mapped and read-only. RunError when the file has gone or was cut since `prepare`."""
        place = f"token file {self.path}"
        found = _size(Path(self.path))
        wanted = self.tokens * np.dtype(self.dtype).itemsize
        if found != wanted:
            what = "is gone" if found is None else f"has {found} bytes, expected {wanted}"
            raise RunError(f"{place}: {what}; the cache was changed since the data was prepared")
        return np.asarray(np.memmap(self.path, dtype=self.dtype, mode="r"))

    def document_hashes(self) -> NDArray[np.uint64]:
        """The first 8 bytes of each document's hash, in order."""
        return np.fromfile(_hashes_path(Path(self.path)), dtype="<u8").astype(np.uint64)


def cache_folder() -> Path:
    """`$MORPHOGEN_CACHE`, or `morphogen` in the platform's cache folder."""
    if chosen := os.environ.get("MORPHOGEN_CACHE"):
        return user_path(chosen, "MORPHOGEN_CACHE")
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = str(Path.home() / "Library" / "Caches")
        else:
            base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:  # no HOME, and nobody of this number among the machine's users
        return _cache_without_home()
    return Path(base) / "morphogen"


def _cache_without_home() -> Path:
    """A folder of this user's own among the temporary ones; InputError where somebody else has it."""
    folder = Path(tempfile.gettempdir()) / f"morphogen-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to somebody else; set MORPHOGEN_CACHE to a folder for caches")
    return folder


def shard_folder(shard: "Shard") -> Path:
    """Where this shard's files are kept."""
    return cache_folder() if shard.cache_path is None else user_path(shard.cache_path, "cache_path")


# -- documents


def distinct(documents: Iterable[Document]) -> Iterator[Hashed]:
    """The documents with their hashes; empty ones and exact duplicates are left out."""
    seen: set[bytes] = set()
    for document in documents:
        digest = corpora.digest_of(document.text)
        if document.text and digest not in seen:
            seen.add(digest)
            yield Hashed(digest, document.origin or digest, document.text, len(document.text.encode()))


def split_of(digest: bytes, split: "Split") -> SplitName:
    """The split of a document by the digest of its text or origin: equal texts go together in whatever source."""
    position = int.from_bytes(digest[:8], "little") / 2**64
    if position < split.train:
        return "train"
    return "eval" if position < split.train + split.eval else "test"


def sampled(digest: bytes, share: float) -> bool:
    """Whether a document is in a sample of `share` of all, independently of its split."""
    return int.from_bytes(digest[8:16], "little") / 2**64 < share


def survey(shard: "Shard") -> Corpus:
    """The corpus behind `shard`: from the cache while its files are unchanged, else by reading them all.

    Sources that are costly to read are copied into the cache on the way, so that this happens once.
    """
    path = _survey_path(shard)
    known = read_checked(path)
    if known is not None and (not corpora.is_costly(shard) or _size(_copy_path(shard)) == known["copy_bytes"]):
        return Corpus(**known["corpus"])
    if corpora.is_costly(shard):
        with cached(_copy_path(shard)) as copy:
            for key, text, origin in corpora.documents(shard):
                copy.write(json.dumps([key, text, origin and origin.hex()]).encode() + b"\n")
    digest, total, kept, n_bytes = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0, 0, 0

    def counted() -> Iterator[Document]:
        nonlocal total
        for document in stored_documents(shard):
            total += 1
            yield document

    for hashed in distinct(counted()):
        digest.update(hashed.digest + hashed.decides_split)
        kept += 1
        n_bytes += hashed.n_bytes
    corpus = Corpus(digest.hexdigest(), kept, total - kept, n_bytes)
    write_checked(path, {"corpus": asdict(corpus), "copy_bytes": _size(_copy_path(shard))})
    return corpus


def stored_documents(shard: "Shard") -> Iterator[Document]:
    """The shard's documents, from the local copy where one is kept. Call `survey` first."""
    if not corpora.is_costly(shard):
        yield from corpora.documents(shard)
        return
    path = _copy_path(shard)
    with path.open("rb") as lines:
        for line in lines:
            try:
                key, text, origin = json.loads(line)
            except ValueError:
                raise InputError(f"data source {shard.source!r}: its copy {path} is damaged; delete it") from None
            yield Document(key, text, origin and bytes.fromhex(origin))


# -- tokens


def token_files(shard: "Shard", corpus: Corpus, split: "Split", tokenizer: Tokenizer) -> dict[SplitName, TokenFile]:
    """The shard's tokens by split, encoded unless intact files are in the cache.

    Raises InputError when the source changed while it was being read, or the cache cannot be written.
    """
    folder = shard_folder(shard)
    decides = [corpus.digest, split.train, split.eval, tokenizer.digest]
    key = hashlib.blake2b(json.dumps(decides).encode(), digest_size=_DIGEST_BYTES).hexdigest()
    sidecar = folder / f"tokens-{FORMAT}-{key}.json"
    paths = {name: folder / f"tokens-{FORMAT}-{key}.{name}.bin" for name in SPLITS}
    known = read_checked(sidecar)
    if known is None or not all(_intact(path, known["files"][name]) for name, path in paths.items()):
        known = _encode(shard, corpus, split, tokenizer, paths)
        write_checked(sidecar, known)
    return {
        name: TokenFile(str(path.absolute()), found["tokens"], found["documents"], known["dtype"])
        for name, path in paths.items()
        for found in [known["files"][name]]
    }


def _encode(
    shard: "Shard", corpus: Corpus, split: "Split", tokenizer: Tokenizer, paths: dict[SplitName, Path]
) -> dict[str, Any]:
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    end = np.array([tokenizer.eot], dtype=dtype)
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with ExitStack() as stack:
        tokens = {name: _Hashing(stack.enter_context(cached(path))) for name, path in paths.items()}
        hashes = {name: _Hashing(stack.enter_context(cached(_hashes_path(path)))) for name, path in paths.items()}
        documents = distinct(stored_documents(shard))
        while batch := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
            for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
                name = split_of(document.decides_split, split)
                tokens[name].write(np.concatenate([ids.astype(dtype), end]).tobytes())
                hashes[name].write(document.digest[:8])
                digest.update(document.digest + document.decides_split)
        if digest.hexdigest() != corpus.digest:
            _survey_path(shard).unlink(missing_ok=True)
            raise InputError(f"data source {shard.source!r}: its text changed while it was being read; start again")
    itemsize = np.dtype(dtype).itemsize
    return {
        "dtype": dtype,
        "files": {
            name: {
                "tokens": tokens[name].size // itemsize,
                "documents": hashes[name].size // 8,
                "sha256": tokens[name].sha256.hexdigest(),
                "hashes_sha256": hashes[name].sha256.hexdigest(),
            }
            for name in SPLITS
        },
    }


class _Hashing:
    """A file being written, its size and hash kept on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self.sha256.update(raw)
        self.size += len(raw)


def _intact(path: Path, recorded: dict[str, Any]) -> bool:
    found = [_sha256(path), _sha256(_hashes_path(path))]
    return found == [recorded["sha256"], recorded["hashes_sha256"]]


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hashes_path(tokens: Path) -> Path:
    return tokens.with_suffix(".docs")


def _survey_path(shard: "Shard") -> Path:
    return shard_folder(shard) / f"corpus-{FORMAT}-{corpora.fingerprint(shard)}.json"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _copy_path(shard: "Shard") -> Path:
    return shard_folder(shard) / f"text-{FORMAT}-{corpora.fingerprint(shard)}.jsonl"


# -- files


@contextmanager
def cached(path: Path) -> Iterator[IO[bytes]]:
    """A file of the cache to write, as `atomic`. InputError when the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            yield file
    except OSError as error:
        raise InputError(
            f"cache folder {path.parent}: cannot write {path.name} ({error.strerror or error}); set MORPHOGEN_CACHE or "
            "data.shards[].cache_path to a folder that can be written"
        ) from error


def write_checked(path: Path, payload: dict[str, Any]) -> None:
    """Write JSON with its own hash, so that `read_checked` can tell a damaged file."""
    text = json.dumps(payload, sort_keys=True)
    with cached(path) as file:
        file.write(json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "payload": payload}).encode())


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None when there is no such file, or it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        payload: dict[str, Any] = found["payload"]
        text = json.dumps(payload, sort_keys=True)
        return payload if found["sha256"] == hashlib.sha256(text.encode()).hexdigest() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
