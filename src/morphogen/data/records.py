"""Files of records: JSON Lines, JSON, CSV, TSV, parquet and Arrow. A document is the text column of one record."""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from morphogen.data.document import Document, Reader
from morphogen.data.textfiles import fault, open_text
from morphogen.errors import nearest

#: The column that is read where a shard names none,
TEXT_COLUMN: Final = "text"
#: and those that are where there is no such column, and only one of these.
LIKELY_COLUMNS: Final = frozenset(
    [
        "answer",
        "article",
        "body",
        "code",
        "content",
        "contents",
        "context",
        "document",
        "markdown",
        "passage",
        "prompt",
        "question",
        "raw_content",
        "response",
        "sentence",
        "story",
    ]
)
#: What may stand between the fields of a .csv file.
_DELIMITERS = (",", ";", "\t", "|")
_ROWS = "records that cannot be read"
_FILES = "files of records that cannot be read"
_INK = re.compile(r"\S")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def column_of(columns: Iterable[str], reader: Reader) -> str | None:
    """The column that holds the text; None where the shard's is not there, or it cannot be told."""
    names = list(columns)
    if reader.column is not None:
        return reader.column if reader.column in names else None
    likely = [TEXT_COLUMN] if TEXT_COLUMN in names else [name for name in names if name.lower() in LIKELY_COLUMNS]
    return likely[0] if len(likely) == 1 else None


def no_column(columns: Iterable[str], reader: Reader) -> str:
    """What to say where `column_of` finds none."""
    names = sorted(map(str, columns))
    wanted = reader.column or TEXT_COLUMN
    hint = nearest(wanted, names)
    way = f"; is it text_field: {hint}?" if hint else "; say which it is with text_field on the shard" if names else ""
    return f"no column {wanted!r}, found {', '.join(names) or 'none'}{way}"


class Rows:
    """The documents of one file of records, whose text column is found at its first record."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.column: str | None = None

    def text(self, row: object, where: str) -> str | None:
        """The row's text; None for a row that is left out. Halves of surrogate pairs, which no encoding can store,
        become U+FFFD."""
        value = row
        if isinstance(row, Mapping):
            if self.column is None:
                self.column = column_of(row, self.reader)
                if self.column is not None:
                    self.reader.columns[self.column] += 1
            if self.column is None or self.column not in row:
                self.reader.refuse(where, f": {no_column(row, self.reader)}", _ROWS)
                return None
            value = row[self.column]
            if not isinstance(value, str):
                found = "null" if value is None else type(value).__name__
                self.reader.refuse(where, f": {self.column!r} is {found}, expected a string", _ROWS)
                return None
        elif not isinstance(row, str):
            said = f": got {type(row).__name__}, expected an object with {self.reader.column or TEXT_COLUMN!r}"
            self.reader.refuse(where, said, _ROWS)
            return None
        text = str(value)
        return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def read_jsonl(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """One document per line of a .jsonl file; blank lines are skipped."""
    rows = Rows(reader)
    with open_text(path, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            if not line.strip() or not _is_text(line, where, reader):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                reader.refuse(where, f": not JSON ({error})", _ROWS)
                continue
            if (text := rows.text(row, where)) is not None:
                yield Document(f"{key}:{number}", text)


def read_json(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """A .json file: an array of records, one record, or one after the other."""
    with open_text(path) as stream:
        first = stream.readline()
    try:
        one_a_line = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        one_a_line = False
    if one_a_line:
        yield from read_jsonl(path, key, reader)
        return
    with open_text(path) as stream:
        text = stream.read()
    if not _is_text(text, str(path), reader):
        return
    rows = Rows(reader)
    try:
        for number, row in enumerate(_values(text), start=1):
            if (found := rows.text(row, f"{path} record {number}")) is not None:
                yield Document(f"{key}:{number}", found)
    except (ValueError, RecursionError) as error:
        reader.refuse(str(path), f": not JSON ({error})", _FILES)


def _values(text: str) -> Iterator[Any]:
    """The items of an array, or the values that follow each other."""
    decoder, at = json.JSONDecoder(), _next(text, 0)
    if text.startswith("[", at):
        yield from json.loads(text)
        return
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        yield value
        at = _next(text, at)


def _next(text: str, at: int) -> int:
    """Where the next character that is not white space stands."""
    found = _INK.search(text, at)
    return found.start() if found else len(text)


def read_csv(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """One document per row of a .csv or .tsv file, whose first row names the columns."""
    csv.field_size_limit(2**31 - 1)  # of the whole interpreter; a document may be of any length
    with open_text(path) as lines:
        header = lines.readline()
        delimiter = "\t" if ".tsv" in path.name.lower() else max(_DELIMITERS, key=header.count)
        columns = next(csv.reader([header], delimiter=delimiter), [])
        column = column_of(columns, reader)
        if column is None:
            reader.refuse(str(path), f": {no_column(columns, reader)}", _FILES)
            return
        reader.columns[column] += 1
        place = columns.index(column)
        table = csv.reader(lines, delimiter=delimiter, strict=True)
        line = 2
        while True:
            where = f"{path}:{line}"
            try:
                row = next(table, None)
            except csv.Error as error:
                reader.refuse(where, f": not a row of {len(columns)} fields ({error})", _ROWS)
                line = table.line_num + 2
                continue
            if row is None:
                return
            if row and len(row) != len(columns):
                reader.refuse(where, f": {len(row)} fields, expected {len(columns)} as in the first row", _ROWS)
            elif row and _is_text(row[place], where, reader):
                yield Document(f"{key}:{line}", row[place])
            line = table.line_num + 2


def read_parquet(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """One document per row of a .parquet file."""
    import pyarrow.parquet

    def opened(stack: ExitStack) -> tuple[list[str], Callable[[str], Iterator[Any]]]:
        table = stack.enter_context(pyarrow.parquet.ParquetFile(path))
        return table.schema_arrow.names, lambda column: (
            batch.column(0) for batch in table.iter_batches(batch_size=1024, columns=[column])
        )

    yield from _columnar(path, key, reader, "parquet", opened)


def read_arrow(path: Path, key: str, reader: Reader) -> Iterator[Document]:
    """One document per row of an .arrow file: a stream, as `datasets.save_to_disk` writes it, or a file."""
    import pyarrow.ipc

    def opened(stack: ExitStack) -> tuple[list[str], Callable[[str], Iterator[Any]]]:
        mapped = stack.enter_context(pyarrow.memory_map(str(path)))
        try:
            table = pyarrow.ipc.open_stream(mapped)
            batches = iter(table)
        except pyarrow.ArrowInvalid:
            table = pyarrow.ipc.open_file(mapped)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        return table.schema.names, lambda column: (batch.column(column) for batch in batches)

    yield from _columnar(path, key, reader, "Arrow", opened)


def _columnar(
    path: Path,
    key: str,
    reader: Reader,
    kind: str,
    opened: Callable[[ExitStack], tuple[list[str], Callable[[str], Iterator[Any]]]],
) -> Iterator[Document]:
    """The rows of a file by columns. opened: the columns' names, and a column's values in batches; what it opens is
    closed after the last row that is asked for."""
    import pyarrow

    row = 0
    rows = Rows(reader)
    try:
        with ExitStack() as stack:
            columns, batches = opened(stack)
            column = column_of(columns, reader)
            if column is None:
                reader.refuse(str(path), f": {no_column(columns, reader)}", _FILES)
                return
            for value in itertools.chain.from_iterable(map(_strings, batches(column))):
                row += 1
                where = f"{path} row {row}"
                if isinstance(value, UnicodeDecodeError):
                    said = f" is not UTF-8 text: byte 0x{value.object[value.start]:02x} at byte {value.start}"
                    reader.refuse(where, said, _ROWS)
                elif (text := rows.text({column: value}, where)) is not None:
                    yield Document(f"{key}:{row}", text)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        after = f" after row {row}" if row else ""
        reader.refuse(str(path), f" is not a readable {kind} file{after} ({' '.join(str(error).split())})", _FILES)


def _strings(column: Any) -> Iterator[object]:
    """The values of a column as Python has them, bytes decoded; in place of one that is not UTF-8 the error."""
    for scalar in column:
        try:
            value = scalar.as_py()
            yield value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            yield error


def _is_text(text: str, where: str, reader: Reader) -> bool:
    found = fault(text)
    if found is not None:
        reader.refuse(where, f" {found[1]} at character {found[0] + 1}", _ROWS)
    return found is None
