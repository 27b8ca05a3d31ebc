"""Tokenizers: text to token ids and back.

`bytes` and `bpe` are exact: the ids of a text decode to that very text, and `bytes_per_token` adds up to its length in
bytes. What another tokenizer makes of a text is measured on the text, see `spelling`. Tokens that stand for no text
(end of text) count 0 bytes.

Shapes: V vocabulary, N tokens of a text.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np

from morphogen import plugins, reach
from morphogen.data import hub
from morphogen.data.spelling import Ids, Loss, bytes_of_tokens, is_byte_exact, loss, spelling
from morphogen.errors import InputError, nearest
from morphogen.paths import user_path

if TYPE_CHECKING:
    import tokenizers

N_BYTES: Final = 256
#: What the hub may call a tokenizer; anything else is a path.
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
#: A BPE learns from runs of letters, of digits, of signs or of white space of at most this many characters. The time
#: that a run takes grows with the square of its length, and text without spaces (DNA, a line of `=`) is one run.
LONGEST_RUN: Final = 1024
_LONG_RUN = re.compile(
    rf"(?:[^\W\d_]{{{LONGEST_RUN}}}|\d{{{LONGEST_RUN}}}|[^\w\s]{{{LONGEST_RUN}}}|_{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}})"
)
#: Ids may have holes, but not more of them than twice the tokens and so many.
SPARE_IDS: Final = 1024
#: A text that cannot be encoded is told with so many of its characters.
_SHOWN = 60


class Spelled(NamedTuple):
    """A text as tokens: ids_N, the bytes_N of the text that each has, and what is lost, by each way to read them.

    Those are the pieces one after another as their marks say, and what the tokenizer's own decoder writes.
    """

    ids: Ids
    n_bytes: Ids
    losses: tuple[Loss, ...]


@runtime_checkable
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
    def pieces(self) -> tuple[bytes | None, ...]:
        """The text that each id stands for; None for those that stand for none, such as end of text."""

    @property
    def bytes_per_token(self) -> Ids:
        """bytes_V: how many bytes of text each id stands for; 0 for end of text. Exact where `is_byte_exact`."""

    @property
    def is_byte_exact(self) -> bool:
        """Whether every text's tokens are its bytes in order: `bytes_per_token` adds up, and nothing is ever lost."""

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids_N of each text, without any special token."""

    def spell_batch(self, texts: Sequence[str]) -> list[Spelled]:
        """As `encode_batch`, with each token's bytes of the text and what the tokens lose of it."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; ends of text are left out, broken UTF-8 becomes U+FFFD."""


class ByteTokenizer:
    """The 256 bytes of UTF-8, and end of text."""

    vocab_size = N_BYTES + 1
    eot = N_BYTES
    digest = "bytes-256-eot"
    is_byte_exact = True

    @property
    def pieces(self) -> tuple[bytes | None, ...]:
        return (*(bytes([value]) for value in range(N_BYTES)), None)

    @property
    def bytes_per_token(self) -> Ids:
        return byte_lengths(self.pieces)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) for text in texts]

    def spell_batch(self, texts: Sequence[str]) -> list[Spelled]:
        return _spelled_exactly(self, texts)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i != self.eot).decode("utf-8", errors="replace")


class PieceTokenizer:
    """A `tokenizers` tokenizer, ours or from Hugging Face.

    eot: the id of end of text, or None to append a new one after the last id. place: what errors call it. Strings that
    look like special tokens are text like any other when they occur in a document. A BPE's dropout is switched off:
    the same text has the same ids each time. InputError for a vocabulary without tokens, or mostly of holes.
    """

    def __init__(self, pieces: "tokenizers.Tokenizer", eot: int | None = None, place: str = "data.tokenizer") -> None:
        self._pieces, self._place = pieces, place
        pieces.no_padding()
        pieces.no_truncation()
        self._json = pieces.to_str()
        definition = json.loads(self._json)
        if definition["model"].get("dropout"):
            pieces.model.dropout = None
        pieces.encode_special_tokens = True
        ids = pieces.get_vocab(with_added_tokens=True)
        size = max(ids.values(), default=-1) + 1
        _check_ids(ids, size, eot, place)
        self.eot: int = size if eot is None else eot
        self.vocab_size = max(size, self.eot + 1)
        self.digest = hashlib.sha256(f"{self.eot}\n{self._json}".encode()).hexdigest()[:32]
        self._spelling = spelling(definition)
        self._unknown = _unknown(definition["model"], ids)
        self.pieces = self._texts(ids)
        self.bytes_per_token = byte_lengths(self.pieces)
        self.is_byte_exact = is_byte_exact(definition) and (eot is None or not self._is_text(eot))
        self._has_decoder = definition["decoder"] is not None

    def _texts(self, ids: dict[str, int]) -> tuple[bytes | None, ...]:
        texts: list[bytes | None] = [None] * self.vocab_size
        for piece, i in ids.items():
            texts[i] = self._spelling.text(piece)
        for i, added in self._pieces.get_added_tokens_decoder().items():  # these stand as they are, or for no text
            texts[i] = None if added.special else added.content.encode()
        texts[self.eot] = None
        if self._unknown is not None:
            texts[self._unknown] = None
        return tuple(texts)

    def _is_text(self, i: int) -> bool:
        """Whether a token is what its own text is encoded to, as one that was only declared to be special is."""
        piece = self._pieces.id_to_token(i)
        try:
            text = "" if piece is None else self._spelling.text(piece).decode()
        except UnicodeDecodeError:  # some bytes of a character, which is as good as text
            return True
        return i in self._pieces.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array(encoding.ids, dtype=np.int64) for encoding in self._encoded(texts)]

    def spell_batch(self, texts: Sequence[str]) -> list[Spelled]:
        if self.is_byte_exact:
            return _spelled_exactly(self, texts)
        return [self._spelled(text, found) for text, found in zip(texts, self._encoded(texts), strict=True)]

    def _encoded(self, texts: Sequence[str]) -> list["tokenizers.Encoding"]:
        shown = texts[0][:_SHOWN] if len(texts) == 1 else ""
        try:
            with _library(f"{self._place}: cannot encode {shown!r}" if shown else self._place):
                return self._pieces.encode_batch(list(texts), add_special_tokens=False)
        except InputError:
            if len(texts) > 1:  # one by one, to tell which text it was
                return [found for text in texts for found in self._encoded([text])]
            raise

    def _spelled(self, text: str, found: "tokenizers.Encoding") -> Spelled:
        ids_N = np.array(found.ids, dtype=np.int64)
        hints_N, before = self.bytes_per_token[ids_N], bool(self._spelling.suffix)
        known = [i for i in found.ids if i not in (self._unknown, self.eot)]
        written = [self._spelling.join([piece for i in known if (piece := self.pieces[i]) is not None])]
        if self._has_decoder:
            written.append(self._pieces.decode(known, skip_special_tokens=False))
        losses = [loss(text, each, len(known)) for each in written]
        if len(known) < len(found.ids):  # nothing comes back of these, whatever a decoder writes for them
            losses = [each if each.wrong else Loss(each.characters, 1, each.known) for each in losses]
        return Spelled(ids_N, bytes_of_tokens(text, found.offsets, hints_N, gaps_before=before), tuple(losses))

    def decode(self, ids: Iterable[int]) -> str:
        return self._pieces.decode([int(i) for i in ids if i != self.eot], skip_special_tokens=False)

    def to_json(self) -> str:
        """The tokenizer as `from_json` reads it."""
        return self._json


def byte_lengths(pieces: Sequence[bytes | None]) -> Ids:
    """bytes_V of pieces_V."""
    return np.array([0 if piece is None else len(piece) for piece in pieces], dtype=np.int64)


def _spelled_exactly(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Spelled]:
    table_V = tokenizer.bytes_per_token
    return [
        Spelled(ids_N, table_V[ids_N], (Loss(len(text), 0, len(ids_N)),))
        for text, ids_N in zip(texts, tokenizer.encode_batch(texts), strict=True)
    ]


def _check_ids(ids: dict[str, int], size: int, eot: int | None, place: str) -> None:
    most = 2 * len(ids) + SPARE_IDS
    if not ids:
        raise InputError(f"{place}: its vocabulary has no tokens")
    if size > most:
        raise InputError(f"{place}: its ids go up to {size - 1}, but it has {len(ids)} tokens, expected ids in a row")
    if eot is not None and not 0 <= eot < most:
        raise InputError(f"{place}: its end of text has the id {eot}, expected one of its {size}")


def _unknown(model: dict[str, Any], ids: dict[str, int]) -> int | None:
    """The id of the unknown token, where there is one."""
    if model["type"] == "Unigram":
        found: int | None = model["unk_id"]
        return found
    token = model.get("unk_token")
    return None if token is None else ids.get(token)


def named(name: str) -> Tokenizer:
    """The tokenizer that an experiment names: `bytes`, what an installed package offers (a function without arguments
    as an entry point of the group `morphogen.tokenizers`), or else a Hugging Face tokenizer.

    Raises InputError when it cannot be had.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name not in plugins.names(plugins.TOKENIZERS):
        return from_hugging_face(name)
    place = f"data.tokenizer {name!r}"
    make: Callable[..., object] = plugins.choose(plugins.TOKENIZERS, {}, name)
    with _library(f"{place}: cannot be made"):
        made = make()
    if not isinstance(made, Tokenizer):
        raise InputError(f"{place}: got {made!r}, expected a tokenizer as morphogen.data.tokenizers.Tokenizer says")
    return made


@contextmanager
def _library(place: str) -> Iterator[None]:
    """What `tokenizers` and `transformers` raise for what they cannot use, as InputError at `place`."""
    try:
        yield
    except (InputError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the bindings raise bare Exception, and a panic of Rust is not even that
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{place} ({said})") from None


def from_json(text: str) -> PieceTokenizer:
    """A tokenizer written by `PieceTokenizer.to_json`, with end of text appended after its last id. InputError where
    the text is none."""
    import tokenizers

    with _library("tokenizer_json: not a tokenizer"):
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


#: Files of a tokenizer on the hub, one of which is there when it was fetched.
_FETCHED = ("tokenizer.json", "tokenizer_config.json", "config.json")
_WANTED = "expected 'bytes', {kind: bpe, vocab: N}, or a Hugging Face tokenizer (file, folder or hub name)"


def from_hugging_face(name: str) -> PieceTokenizer:
    """The tokenizer called `name`: a `tokenizer.json`, a folder, or a repository on the hub (no remote code is run).

    Raises InputError when it is missing, damaged, or has no fast form.
    """
    place = f"data.tokenizer {name!r}"
    path = user_path(name, place)
    try:
        if path.is_file():
            return _from_file(path, place)
        if (path / "tokenizer.json").is_file():
            _definition(path / "tokenizer.json", place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in it
        raise InputError(f"{place}: cannot be read ({error})") from None
    unheard = reach.unreachable("models", name) if _HUB_NAME.fullmatch(name) and not path.exists() else None
    _refuse_unheard(name, path, unheard)
    import transformers

    with _library(f"{place}: got no tokenizer of that name, {_WANTED}{_suggestion(name, path)}"):
        loaded = transformers.AutoTokenizer.from_pretrained(
            str(path) if path.exists() else name, trust_remote_code=False, local_files_only=unheard is not None
        )
    if not loaded.is_fast:
        raise InputError(f"{place}: has no fast form (tokenizer.json), expected one that `tokenizers` can read")
    with _library(f"{place}: not a tokenizer that can be used"):
        return PieceTokenizer(loaded.backend_tokenizer, loaded.eos_token_id, place)


def check_reachable(name: str) -> None:
    """InputError where a tokenizer is on the hub, was not fetched before, and the hub cannot be asked for it."""
    if name == "bytes" or name in plugins.names(plugins.TOKENIZERS):
        return
    path = user_path(name, f"data.tokenizer {name!r}")
    if _HUB_NAME.fullmatch(name) and not path.exists() and not hub.is_fetched(name, _FETCHED):
        _refuse_unheard(name, path, reach.unreachable("models", name))


def _refuse_unheard(name: str, path: Path, unheard: str | None) -> None:
    if unheard and not hub.is_fetched(name, _FETCHED):
        said = f"{unheard}, and it was not fetched before; {_WANTED}{_suggestion(name, path)}"
        raise InputError(f"data.tokenizer {name!r}: {said}")


def _from_file(path: Path, place: str) -> PieceTokenizer:
    import tokenizers

    text = _definition(path, place)
    with _library(f"{place}: not a tokenizer.json"):
        return PieceTokenizer(tokenizers.Tokenizer.from_str(text), place=place)


def _definition(path: Path, place: str) -> str:
    """The text of a `tokenizer.json`. InputError where it is no JSON, or its ids or merges cannot be."""
    with _library(f"{place}: not a tokenizer.json"):
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict):
        raise InputError(f"{place}: not a tokenizer.json (it has no model)")
    if isinstance(vocab := model.get("vocab"), dict):
        numbers = {piece: i for piece, i in vocab.items() if isinstance(i, int)}
        _check_ids(numbers, max(numbers.values(), default=-1) + 1, None, place)  # the library is lost in large holes
        if isinstance(model.get("merges"), list):
            _check_merges(model, place)
    return text


def _check_merges(model: dict[str, Any], place: str) -> None:
    """The library does not refuse every bad merge, but ends in a panic for some."""
    vocab, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    for number, merge in enumerate(model["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) for half in pair)):
            raise InputError(f"{place}: merge {number} is {merge!r}, expected two pieces")
        for piece in (*pair, pair[0] + pair[1].removeprefix(prefix)):
            if piece not in vocab:
                raise InputError(f"{place}: merge {number} is {merge!r}, but {piece!r} is not in its vocabulary")


def _suggestion(name: str, path: Path) -> str:
    try:
        neighbours = [str(path.parent / found.name) for found in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        neighbours = []
    hint = nearest(name, ["bytes", *neighbours])
    return f"; did you mean {hint!r}?" if hint else ""
