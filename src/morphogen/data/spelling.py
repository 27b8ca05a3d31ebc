"""What tokens stand for: the text of each piece, the bytes of a text that each token has, and what of it is lost.

Bits per byte divide by the bytes of the documents as they were read. A byte-level tokenizer has so many bytes to a
token, whatever the text; any other changes the text before it cuts it up, so that its bytes are counted on the text.

Shapes: N tokens of a text, C characters of it (C1 is C + 1).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
#: A text of bytes that a decoder writes as one character.
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: So many kinds of lost characters are told of.
EXAMPLES: Final = 5
#: Pre-tokenizers that leave out the spaces between words.
_DROP_SPACES: Final = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}
#: Pre-tokenizers that cut and keep everything.
_ONLY_CUT: Final = {"Split", "Digits", "ByteLevel"}


@dataclass(frozen=True)
class Loss:
    """What of a text its tokens do not spell. wrong: characters that do not come back, or that come unasked.

    known: tokens that are not the unknown one. examples: the characters lost most often, with how many of each.
    """

    characters: int = 0
    wrong: int = 0
    known: int = 0
    examples: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        counts = Counter(self.examples) + Counter(other.examples)
        return type(self)(
            self.characters + other.characters, self.wrong + other.wrong, self.known + other.known, counts
        )

    @property
    def share(self) -> float:
        """Of the text's characters, at most all of them."""
        return min(1.0, self.wrong / self.characters) if self.characters else 0.0

    def told(self) -> str:
        """The share and the characters: `2.1 % of its characters ('\\n' 12 times)`."""
        most = sorted(self.examples.items(), key=lambda item: (-item[1], item[0]))[:EXAMPLES]
        lost = ", ".join(f"{character!r} {count} times" for character, count in most)
        return f"{100 * self.share:.3g} % of its characters ({lost or 'some come back elsewhere or unasked'})"


def loss(text: str, spelled: str, known: int) -> Loss:
    """What is lost of `text` when its tokens read `spelled`."""
    if text == spelled:
        return Loss(len(text), 0, known)
    mine, theirs = Counter(text), Counter(spelled)
    gone = mine - theirs
    wrong = max(gone.total(), (theirs - mine).total(), 1)
    return Loss(len(text), wrong, known, gone)


@dataclass(frozen=True)
class Spelling:
    """How the pieces of one tokenizer write text, by its definition. See `spelling`."""

    byte_level: bool
    suffix: str
    prefix: str
    spaced: bool
    blank: str
    leading: bool

    def text(self, piece: str) -> bytes:
        """The text a piece stands for, with the space that it implies before it or, where words end in a mark, after.

        A piece that ends a word, such as `the</w>`, reads `the `; one that begins one, such as `▁the`, ` the`.
        """
        if self.suffix and piece.endswith(self.suffix):
            return self._plain(piece.removesuffix(self.suffix)) + b" "
        if self.prefix and piece.startswith(self.prefix):
            return self._plain(piece.removeprefix(self.prefix))
        return b" " * self.spaced + self._plain(piece)

    def _plain(self, piece: str) -> bytes:
        if self.byte_level and all(character in BYTES_OF for character in piece):
            return bytes(BYTES_OF[character] for character in piece)
        if found := _BYTE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        return (piece if self.byte_level else piece.replace(self.blank, " ")).encode()

    def join(self, pieces: Sequence[bytes]) -> str:
        """The text of pieces one after another, less the space that the first (or last) word has only by its mark."""
        raw = b"".join(pieces)
        if self.suffix:
            raw = raw.removesuffix(b" ")
        elif self.leading:
            raw = raw.removeprefix(b" ")
        return raw.decode("utf-8", errors="replace")


def spelling(definition: Mapping[str, Any]) -> Spelling:
    """How the tokenizer of that `tokenizer.json` writes text."""
    model, pre, normalizers = definition["model"], _steps(definition, "pre_tokenizer"), _steps(definition, "normalizer")
    kinds = {step["type"] for step in pre}
    byte_level = "ByteLevel" in kinds | {step["type"] for step in _steps(definition, "decoder") + normalizers}
    suffix, prefix = model.get("end_of_word_suffix") or "", model.get("continuing_subword_prefix") or ""
    words = model["type"] == "WordLevel" or bool(prefix)
    spaced = words and not suffix and bool(kinds & _DROP_SPACES or not kinds)
    blanks = [step for step in pre + _steps(definition, "decoder") if step["type"] == "Metaspace"]
    added = any(step.get("prepend_scheme") != "never" for step in blanks)
    added |= any(step["type"] == "Prepend" for step in normalizers)
    added |= any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in pre)
    return Spelling(
        byte_level=byte_level,
        suffix=suffix,
        prefix=prefix,
        spaced=spaced,
        blank=blanks[0]["replacement"] if blanks else "▁",
        leading=spaced or added,
    )


def is_byte_exact(definition: Mapping[str, Any]) -> bool:
    """Whether the tokens of any text at all are its bytes in order, so that each token has as many as its piece.

    Byte-level BPE with all 256 bytes in its vocabulary, nothing that changes the text first, and no marks on pieces.
    """
    model, pre = definition["model"], _steps(definition, "pre_tokenizer")
    return (
        model["type"] == "BPE"
        and definition["normalizer"] is None
        and not (model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"))
        and all(character in model["vocab"] for character in BYTES_OF)
        and {step["type"] for step in pre} <= _ONLY_CUT
        and [step["type"] for step in pre].count("ByteLevel") == 1
        and pre[-1]["type"] == "ByteLevel"
        and not pre[-1]["add_prefix_space"]
        and not any(step["type"] == "Split" and step["behavior"] == "Removed" for step in pre)
        and not any(added["lstrip"] or added["rstrip"] for added in definition["added_tokens"])
    )


def bytes_of_tokens(
    text: str, spans: Sequence[tuple[int, int]], hints_N: Ids, *, gaps_before: bool
) -> NDArray[np.int64]:
    """bytes_N: how many bytes of the text each token has; they add up to the text's.

    spans: first and last character (left out) of each token. What stands between two tokens, such as a space that was
    dropped, belongs to the one after it, or before it with `gaps_before`; what stands after the last, to the last.
    Tokens that share characters share their bytes as `hints_N` says where that adds up, else evenly.
    """
    if not spans:
        return np.zeros(0, dtype=np.int64)
    before_C1 = _bytes_before(text)
    start_N, end_N = np.clip(np.array(spans, dtype=np.int64), 0, len(text)).T
    end_N = np.maximum.accumulate(end_N)
    shared_N = np.concatenate([start_N[1:] < end_N[:-1], [False]])  # with the token after it
    if gaps_before:
        end_N[:-1] = np.maximum(end_N[:-1], np.where(shared_N[:-1], 0, start_N[1:]))
        end_N = np.maximum.accumulate(end_N)
    bytes_N = np.diff(before_C1[end_N], prepend=0)
    if shared_N.any():
        _share(bytes_N, shared_N, before_C1[start_N], before_C1[end_N], hints_N)
    bytes_N[-1] += before_C1[-1] - before_C1[end_N[-1]]
    return bytes_N


def _bytes_before(text: str) -> NDArray[np.int64]:
    """before_C1: how many bytes of UTF-8 stand before each character, and in all."""
    code_C = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    length_C = 1 + (code_C > 0x7F) + (code_C > 0x7FF).astype(np.int64) + (code_C > 0xFFFF)
    return np.concatenate([[0], np.cumsum(length_C)])


def _share(bytes_N: Ids, shared_N: NDArray[np.bool_], start_N: Ids, end_N: Ids, hints_N: Ids) -> None:
    """Within each run of tokens that share characters, their bytes are dealt out anew, in place."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], shared_N, [False]])))
    for first, last in edges.reshape(-1, 2):  # the last of a run shares with none after it, but with the one before
        group = slice(first, last + 1)
        whole = int(bytes_N[group].sum())
        gap = max(0, min(whole, int(start_N[first]) - (int(end_N[first - 1]) if first else 0)))
        count = last + 1 - first
        if int(hints_N[group].sum()) == whole - gap:
            bytes_N[group] = hints_N[group]
        else:
            bytes_N[group] = np.diff((whole - gap) * np.arange(count + 1) // count)
        bytes_N[first] += gap


def _steps(definition: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    """The steps of a pre-tokenizer, normalizer or decoder, sequences laid flat."""
    found: list[Mapping[str, Any]] = []
    left = [definition[field]]
    while left:
        step = left.pop(0)
        if step is None:
            continue
        inner = next((step[name] for name in ("pretokenizers", "normalizers", "decoders") if name in step), None)
        if inner is None:
            found.append(step)
        else:
            left = [*inner, *left]
    return found


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level tokenizers write the 256 bytes: themselves where they can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES_OF: Final = _byte_characters()
