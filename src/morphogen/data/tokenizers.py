"""Tokenizers: text to token ids and back.

`bytes` and `bpe` are exact: the ids of a text decode to that very text, and `bytes_per_token` adds up to its length in
bytes, so that bits per byte is exact too. Tokens that stand for no text (end of text) count 0 bytes.

Shapes: V vocabulary, N tokens of a text.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from morphogen.errors import InputError, nearest
from morphogen.paths import user_path

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.int64]
N_BYTES: Final = 256
#: A BPE learns from runs of letters, of digits, of signs or of white space of at most this many characters. The time
#: that a run takes grows with the square of its length, and text without spaces (DNA, a line of `=`) is one run.
LONGEST_RUN: Final = 1024
_LONG_RUN = re.compile(
    rf"(?:[^\W\d_]{{{LONGEST_RUN}}}|\d{{{LONGEST_RUN}}}|[^\w\s]{{{LONGEST_RUN}}}|_{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}})"
)


class Tokenizer(Protocol):
    """What the token store needs. `digest` is a hash of everything that decides the ids of a text."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eot(self) -> int:
        """The id that ends every document; no text of a document ever encodes to it."""

    @property
    def digest(self) -> str: ...
    @property
    def bytes_per_token(self) -> Ids:
        """bytes_V: how many bytes of text each id stands for; 0 for end of text."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids_N of each text, without any special token."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; ends of text are left out, broken UTF-8 becomes U+FFFD."""


class ByteTokenizer:
    """The 256 bytes of UTF-8, and end of text."""

    vocab_size = N_BYTES + 1
    eot = N_BYTES
    digest = "bytes-256-eot"

    @property
    def bytes_per_token(self) -> Ids:
        return np.array([1] * N_BYTES + [0], dtype=np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i != self.eot).decode("utf-8", errors="replace")


class PieceTokenizer:
    """A `tokenizers` tokenizer, ours or from Hugging Face.

    eot: the id of end of text, or None to append a new one after the last id. Strings that look like special tokens
    are text like any other when they occur in a document.
    """

    def __init__(self, pieces: "tokenizers.Tokenizer", eot: int | None = None) -> None:
        self._pieces = pieces
        pieces.no_padding()
        pieces.no_truncation()
        self._json = pieces.to_str()
        pieces.encode_special_tokens = True
        ids = pieces.get_vocab(with_added_tokens=True)
        size = max(ids.values(), default=-1) + 1
        self.eot = size if eot is None else eot
        self.vocab_size = max(size, self.eot + 1)
        self.digest = hashlib.sha256(f"{self.eot}\n{self._json}".encode()).hexdigest()[:32]
        self.bytes_per_token = np.zeros(self.vocab_size, dtype=np.int64)
        length = _piece_length(json.loads(self._json))
        for piece, i in ids.items():
            self.bytes_per_token[i] = length(piece)
        for i, added in pieces.get_added_tokens_decoder().items():  # these stand as they are, or for no text at all
            self.bytes_per_token[i] = 0 if added.special else len(added.content.encode())
        self.bytes_per_token[self.eot] = 0

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        found = self._pieces.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        return self._pieces.decode([int(i) for i in ids if i != self.eot], skip_special_tokens=False)

    def to_json(self) -> str:
        """The tokenizer as `from_json` reads it."""
        return self._json


def from_json(text: str) -> PieceTokenizer:
    """A tokenizer written by `PieceTokenizer.to_json`, with end of text appended after its last id."""
    import tokenizers

    return PieceTokenizer(tokenizers.Tokenizer.from_str(text))


def train_bpe(texts: Iterable[str], vocab: int) -> PieceTokenizer:
    """A byte-level BPE of at most `vocab` ids (fewer when `texts` are too small to merge that often).

    The last id is end of text. Every byte is a token of its own, so any text can be encoded and decodes exactly.
    The same texts in the same order give the same tokenizer. Ref: Sennrich et al. 2016, arXiv 1508.07909.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    pieces = tokenizers.Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab - 1, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(_in_short_runs(texts), trainer)
    return PieceTokenizer(pieces)


def _in_short_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut inside of every run longer than `LONGEST_RUN`; ordinary text stays as it is."""
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        if start < len(text):
            yield text[start:]


def from_hugging_face(name: str) -> PieceTokenizer:
    """The tokenizer called `name`: a `tokenizer.json`, a folder, or a repository on the hub (no remote code is run).

    Raises InputError when it is missing or has no fast form.
    """
    place = f"data.tokenizer {name!r}"
    path = user_path(name, place)
    try:
        if path.is_file():
            return _from_file(path, place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror})") from None
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            str(path) if path.exists() else name, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{place}: got no tokenizer of that name, expected 'bytes', {{kind: bpe, vocab: N}}, or a Hugging Face "
            f"tokenizer (file, folder or hub name){_suggestion(name, path)} ({' '.join(str(error).split())[:200]})"
        ) from error
    if not loaded.is_fast:
        raise InputError(f"{place}: has no fast form (tokenizer.json), expected one that `tokenizers` can read")
    return PieceTokenizer(loaded.backend_tokenizer, loaded.eos_token_id)


def _from_file(path: Path, place: str) -> PieceTokenizer:
    import tokenizers

    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except ValueError as error:
        raise InputError(f"{place}: not a tokenizer.json ({error})") from None
    try:
        return PieceTokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the bindings raise bare Exception
        raise InputError(f"{place}: not a tokenizer.json ({error})") from None


def _suggestion(name: str, path: Path) -> str:
    neighbours = [str(path.parent / found.name) for found in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(name, ["bytes", *neighbours])
    return f"; did you mean {hint!r}?" if hint else ""


def _piece_length(config: dict[str, Any]) -> Callable[[str], int]:
    """How many bytes of text a piece stands for, by the way the tokenizer's decoder writes bytes.

    Exact for byte-level tokenizers, which write every byte as one character. Others (SentencePiece, WordPiece) alter
    the text itself, so that their count is the length of what they decode to.
    """
    decoder = config["decoder"]
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder] if decoder else []
    if any(step["type"] == "ByteLevel" for step in steps):
        return len
    if any(step["type"] == "WordPiece" for step in steps):
        prefix = next(step["prefix"] for step in steps if step["type"] == "WordPiece")
        return lambda piece: len(piece.removeprefix(prefix).encode()) + (not piece.startswith(prefix))
    return _sentencepiece_length


def _sentencepiece_length(piece: str) -> int:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("▁", " ").encode())
