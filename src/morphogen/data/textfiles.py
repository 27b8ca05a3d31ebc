"""Text files, plain or compressed: opened, decoded, and cut into sections where they are long.

A byte-order mark decides between UTF-8, UTF-16 and UTF-32 and is no part of the text; without one it is UTF-8. Line
ends stay as they are. What is not such text is never guessed at.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from morphogen.data.document import Document, Reader

#: Endings of compressed files, each after the ending of what is in it. The last two are read by pyarrow.
COMPRESSED: Final = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4")
#: A text file is cut into documents at the first blank line after this many characters,
SECTION_CHARS: Final = 4096
#: or at the end of a line after this many, blank or not. A line longer than this is cut inside, every `SECTION_CHARS`,
LONGEST_SECTION_CHARS: Final = 4 * SECTION_CHARS
#: at the end of a word where there is one in so many characters.
NEAR_CHARS: Final = 256
#: A file of a folder is one document up to this length, and cut into sections when longer.
WHOLE_CHARS: Final = 2**20

_ESCAPED = re.compile("[\udc80-\udcff]")
_WORD_END = re.compile(r"\s+")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


Opened = io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile


def open_bytes(path: Path) -> Opened:
    """The bytes of a file, decompressed by its ending."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz" | ".lzma":
            return lzma.open(path)
        case ".zst" | ".lz4" as ending:
            import pyarrow

            stream = pyarrow.input_stream(str(path), compression={".zst": "zstd", ".lz4": "lz4"}[ending])
            return io.BufferedReader(stream)
    return path.open("rb")


@contextmanager
def open_text(path: Path, newline: str = "") -> Iterator[io.TextIOWrapper]:
    """The text of a file, line by line, its line ends kept. Bytes that are not UTF-8 come as lone surrogates, which no
    text has: see `fault`."""
    with open_bytes(path) as stream:
        start = stream.peek(4)[:4]
        encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
        errors = "strict" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        with io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline=newline) as text:
            yield text


@contextmanager
def guarded(path: Path, reader: Reader) -> Iterator[None]:
    """What cannot be opened, decompressed or decoded inside is refused by the file's name, or ends the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        reader.refuse(str(path), f" is not {error.encoding} text: {error.reason}", "files that are not text")
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        reader.refuse(str(path), f": damaged, cannot be decompressed ({error})", "damaged files")
    except OSError as error:
        if error.errno is None:  # not the operating system's, but what decompressors say of bad data
            reader.refuse(str(path), f": damaged, cannot be decompressed ({error})", "damaged files")
        else:
            reader.refuse(str(path), f": cannot be read ({error.strerror})", "files that cannot be read")


def fault(text: str) -> tuple[int, str] | None:
    """(where, what) of the first thing in `text` that no text has; None for text."""
    escaped = None if text.isascii() else _ESCAPED.search(text)
    zero = text.find("\0")
    if escaped is not None and not 0 <= zero < escaped.start():
        byte = ord(escaped[0]) - 0xDC00
        return escaped.start(), f"is not UTF-8 text: byte 0x{byte:02x}"
    if zero >= 0:
        return zero, "is not text: a NUL byte (a binary file, or UTF-16 without a byte-order mark)"
    return None


def read_alone(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """A text file given by itself, cut into sections, as a single document could not be split; nothing is lost."""
    for line, start, text in _sections(path):
        if _is_text(path, line, text, reader):
            yield Document(f"{key}:{line}" + (f"+{start}" if start else ""), text)


def read_whole(path: Path, key: str, reader: Reader, most: int = WHOLE_CHARS) -> Iterator[Document]:
    """A text file of a folder: one document, or sections where it is longer than `most` characters."""
    parts: list[str] = []
    size = 0
    with closing(_sections(path)) as sections:
        for _, _, text in sections:
            parts.append(text)
            size += len(text)
            if size > most:
                break
    if size > most:
        yield from read_alone(path, key, reader)
    elif _is_text(path, 1, whole := "".join(parts), reader):
        yield Document(key, whole)


def _is_text(path: Path, first_line: int, text: str, reader: Reader) -> bool:
    found = fault(text)
    if found is None:
        return True
    at, what = found
    line, column = _after((first_line, 0), text[:at])
    reader.refuse(f"{path}:{line}", f" {what} after {column} characters of the line", "texts that are not UTF-8")
    return False


def _sections(path: Path) -> Generator[tuple[int, int, str], None, None]:
    """(line, how many of its characters came before, text) of each section; an empty file has one that is empty."""
    with open_text(path) as stream:
        held: list[str] = []
        start, size, inside = (1, 0), 0, False
        for piece in iter(lambda: stream.readline(LONGEST_SECTION_CHARS), ""):
            held.append(piece)
            size += len(piece)
            ended = piece[-1] in "\r\n"
            inside = inside or (not ended and len(piece) == LONGEST_SECTION_CHARS)
            if inside:  # a line that is too long to stay whole
                text = "".join(held)
                while len(text) >= 2 * SECTION_CHARS:
                    word = _WORD_END.search(text, SECTION_CHARS, SECTION_CHARS + NEAR_CHARS)
                    end = word.end() if word else SECTION_CHARS
                    yield *start, text[:end]
                    start, text = _after(start, text[:end]), text[end:]
                held, size, inside = [text], len(text), not ended
            elif size >= LONGEST_SECTION_CHARS or (size >= SECTION_CHARS and not piece.strip()):
                text = "".join(held)
                yield *start, text
                start, held, size = _after(start, text), [], 0
        if held or start == (1, 0):
            yield *start, "".join(held)


def _after(start: tuple[int, int], text: str) -> tuple[int, int]:
    """(line, characters of it) where `text` ends that began at `start`."""
    line, column = start
    breaks = text.count("\n") + text.count("\r") - text.count("\r\n")
    last = max(text.rfind("\n"), text.rfind("\r"))
    return line + breaks, len(text) - last - 1 + (column if last < 0 else 0)
