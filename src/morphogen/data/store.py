"""The token store: documents split by hash, encoded once, kept as memory-mapped files in a cache folder.

Every file is named by a hash of what decides its content, written to a temporary file, fsynced and renamed. Two
processes that prepare the same data at once therefore write the same bytes under the same names, and neither can see
half a file. Files are checked against their recorded hashes at every start and built anew when they differ.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data import corpora
from morphogen.data.cache import cached, read_checked, shard_folder, write_checked
from morphogen.data.document import Account, Document, digest_of
from morphogen.data.spelling import EXAMPLES, Ids, Loss
from morphogen.data.tokenizers import Spelled, Tokenizer
from morphogen.errors import InputError, RunError

if TYPE_CHECKING:
    from morphogen.experiment import Shard, Split

SplitName = Literal["train", "eval", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "eval", "test")
#: Part of every file name, so that caches written by another version of this module are left alone.
FORMAT: Final = 1
#: The same of the token files.
TOKENS_FORMAT: Final = 3
#: Bytes of text per token, where the tokenizer alone does not tell them.
COUNTS: Final = np.dtype("<u4")
DOCUMENTS_AT_ONCE: Final = 256
_DIGEST_BYTES = 16
_CHANGED = "the cache was changed since the data was prepared"


class Hashed(NamedTuple):
    """A document with the digest of its text, and the digest that decides its split (its origin's, or its own)."""

    digest: bytes
    decides_split: bytes
    text: str
    n_bytes: int


@dataclass(frozen=True)
class Corpus:
    """What a source turned out to hold: `digest` is over the text of its distinct documents, in order. account: how it
    was read."""

    digest: str
    documents: int
    duplicates: int
    n_bytes: int
    account: Account


@dataclass(frozen=True)
class TokenFile:
    """Tokens of one split, packed: each document's ids, then end of text.

    counted: whether a file beside it says of every token how many bytes of text it has; where not, the vocabulary does.
    """

    path: str
    tokens: int
    documents: int
    dtype: Literal["uint16", "uint32"]
    counted: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that training and measuring read."""
        return (self.path, str(_counts_path(Path(self.path)))) if self.counted else (self.path,)

    def open(self) -> NDArray[np.unsignedinteger[Any]]:
        """The tokens, memory-mapped and read-only. RunError when the file has gone or was cut since `prepare`."""
        return self._mapped(Path(self.path), np.dtype(self.dtype))

    def open_counts(self) -> NDArray[np.unsignedinteger[Any]]:
        """How many bytes of text each token has, likewise. Only where they are `counted`."""
        return self._mapped(_counts_path(Path(self.path)), COUNTS)

    def _mapped(self, path: Path, dtype: np.dtype[Any]) -> NDArray[np.unsignedinteger[Any]]:
        found = _size(path)
        wanted = self.tokens * dtype.itemsize
        if found != wanted:
            what = "is gone" if found is None else f"has {found} bytes, expected {wanted}"
            raise RunError(f"token file {path}: {what}; {_CHANGED}")
        try:
            return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        except OSError as error:
            raise RunError(f"token file {path}: cannot be read ({error.strerror}); {_CHANGED}") from None

    def document_hashes(self) -> NDArray[np.uint64]:
        """The first 8 bytes of each document's hash, in order. RunError likewise."""
        path = _hashes_path(Path(self.path))
        try:
            hashes = np.fromfile(path, dtype="<u8")
        except OSError as error:
            raise RunError(f"hashes {path}: cannot be read ({error.strerror}); {_CHANGED}") from None
        if len(hashes) != self.documents:
            raise RunError(f"hashes {path}: there are {len(hashes)}, expected {self.documents}; {_CHANGED}")
        return hashes.astype(np.uint64)


# -- documents


def distinct(documents: Iterable[Document]) -> Iterator[Hashed]:
    """The documents with their hashes; empty ones and exact duplicates are left out."""
    seen: set[bytes] = set()
    for document in documents:
        digest = digest_of(document.text)
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
        return Corpus(**{**known["corpus"], "account": Account.from_json(known["corpus"]["account"])})
    reader = corpora.reader_of(shard)
    if corpora.is_costly(shard):
        with cached(_copy_path(shard)) as copy:
            for key, text, origin in corpora.documents(shard, reader):
                copy.write(json.dumps([key, text, origin and origin.hex()]).encode() + b"\n")
    digest, total, kept, n_bytes = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0, 0, 0

    def counted() -> Iterator[Document]:
        nonlocal total
        for document in stored_documents(shard) if corpora.is_costly(shard) else corpora.documents(shard, reader):
            if not document.text:
                reader.leave_out("empty", document.key)
            total += bool(document.text)
            yield document

    for hashed in distinct(counted()):
        digest.update(hashed.digest + hashed.decides_split)
        kept += 1
        n_bytes += hashed.n_bytes
    corpus = Corpus(digest.hexdigest(), kept, total - kept, n_bytes, reader.account())
    write_checked(path, {"corpus": asdict(corpus), "copy_bytes": _size(_copy_path(shard))})
    return corpus


def check_reachable(shard: "Shard") -> None:
    """InputError where `survey` would have to ask a hub that does not answer."""
    if corpora.is_elsewhere(shard) and not _survey_path(shard).is_file():
        corpora.check_reachable(shard)


def stored_documents(shard: "Shard") -> Iterator[Document]:
    """The shard's documents, from the local copy where one is kept. Call `survey` first."""
    if not corpora.is_costly(shard):
        yield from corpora.documents(shard)
        return
    path = _copy_path(shard)
    try:
        with path.open("rb") as lines:
            for line in lines:
                key, text, origin = json.loads(line)
                yield Document(key, text, origin and bytes.fromhex(origin))
    except (OSError, ValueError) as error:
        raise InputError(
            f"data source {shard.source!r}: its copy {path} is gone or damaged ({error}); delete what is left of it, "
            "and it is made again at the next start"
        ) from None


# -- tokens


def token_files(
    shard: "Shard", corpus: Corpus, split: "Split", tokenizer: Tokenizer
) -> tuple[dict[SplitName, TokenFile], Loss]:
    """The shard's tokens by split, encoded unless intact files are in the cache, and what they lose of its text.

    Raises InputError when the source changed while it was being read, the tokenizer fails at a text, or the cache
    cannot be written.
    """
    folder = shard_folder(shard)
    decides = [corpus.digest, split.train, split.eval, tokenizer.digest]
    key = hashlib.blake2b(json.dumps(decides).encode(), digest_size=_DIGEST_BYTES).hexdigest()
    sidecar = folder / f"tokens-{TOKENS_FORMAT}-{key}.json"
    paths = {name: folder / f"tokens-{TOKENS_FORMAT}-{key}.{name}.bin" for name in SPLITS}
    known = read_checked(sidecar)
    if known is None or not all(_intact(path, known["files"][name]) for name, path in paths.items()):
        known = _encode(shard, corpus, split, tokenizer, paths)
        write_checked(sidecar, known)
    files = {
        name: TokenFile(
            str(path.absolute()), found["tokens"], found["documents"], known["dtype"], "counts_sha256" in found
        )
        for name, path in paths.items()
        for found in [known["files"][name]]
    }
    return files, Loss(**known["loss"])


class _SplitWriter:
    """The files of one split while they are written: tokens, hashes of documents, and counts of bytes where needed."""

    def __init__(self, path: Path, dtype: str, counted: bool, stack: ExitStack) -> None:
        self.dtype = np.dtype(dtype)
        self.tokens = _Hashing(stack.enter_context(cached(path)))
        self.hashes = _Hashing(stack.enter_context(cached(_hashes_path(path))))
        self.counts = _Hashing(stack.enter_context(cached(_counts_path(path)))) if counted else None

    def write(self, document: Hashed, ids_N: Ids, bytes_N: Ids, eot: int) -> None:
        self.tokens.write(np.append(ids_N, eot).astype(self.dtype).tobytes())
        self.hashes.write(document.digest[:8])
        if self.counts is not None:
            self.counts.write(np.append(bytes_N, 0).astype(COUNTS).tobytes())

    def record(self) -> dict[str, Any]:
        """What the sidecar says of these files."""
        found = {
            "tokens": self.tokens.size // self.dtype.itemsize,
            "documents": self.hashes.size // 8,
            "sha256": self.tokens.sha256.hexdigest(),
            "hashes_sha256": self.hashes.sha256.hexdigest(),
        }
        return found if self.counts is None else {**found, "counts_sha256": self.counts.sha256.hexdigest()}


def _encode(
    shard: "Shard", corpus: Corpus, split: "Split", tokenizer: Tokenizer, paths: dict[SplitName, Path]
) -> dict[str, Any]:
    """Write the token files. A document of which no token is left is left out; its text counts among what is lost."""
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    losses: tuple[Loss, ...] = ()
    with ExitStack() as stack:
        counted = {name: name != "train" and not tokenizer.is_byte_exact for name in SPLITS}
        writers = {name: _SplitWriter(path, dtype, counted[name], stack) for name, path in paths.items()}
        documents = distinct(stored_documents(shard))
        while batch := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
            for document, spelled in zip(batch, tokenizer.spell_batch([d.text for d in batch]), strict=True):
                if len(spelled.ids):
                    writer = writers[split_of(document.decides_split, split)]
                    writer.write(document, spelled.ids, spelled.n_bytes, tokenizer.eot)
                losses = _added(losses, spelled)
                digest.update(document.digest + document.decides_split)
        if digest.hexdigest() != corpus.digest:
            _survey_path(shard).unlink(missing_ok=True)
            raise InputError(f"data source {shard.source!r}: its text changed while it was being read; start again")
    least = min(losses, key=lambda one: one.wrong, default=Loss())
    examples = dict(sorted(least.examples.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES])
    return {
        "dtype": dtype,
        "files": {name: writers[name].record() for name in SPLITS},
        "loss": {**asdict(least), "examples": examples},
    }


def _added(losses: tuple[Loss, ...], spelled: Spelled) -> tuple[Loss, ...]:
    """Way by way: whoever decodes has to choose one for all documents."""
    if not losses:
        return spelled.losses
    return tuple(before + now for before, now in zip(losses, spelled.losses, strict=True))


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
    counts = _sha256(_counts_path(path)) if "counts_sha256" in recorded else None
    found = [_sha256(path), _sha256(_hashes_path(path)), counts]
    return found == [recorded["sha256"], recorded["hashes_sha256"], recorded.get("counts_sha256")]


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # gone, or nobody may read it: as good as damaged
        return None


def _hashes_path(tokens: Path) -> Path:
    return tokens.with_suffix(".docs")


def _counts_path(tokens: Path) -> Path:
    return tokens.with_suffix(".bytes")


def _survey_path(shard: "Shard") -> Path:
    return shard_folder(shard) / f"corpus-{FORMAT}-{corpora.fingerprint(shard)}.json"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _copy_path(shard: "Shard") -> Path:
    return shard_folder(shard) / f"text-{FORMAT}-{corpora.fingerprint(shard)}.jsonl"
