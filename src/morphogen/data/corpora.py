"""Text sources: what a shard's `source` names, read as a stream of documents.

Nothing here imports a module of the corpus it reads, and only `hf:` sources ever touch the network.
"""

import ast
import hashlib
import io
import itertools
import json
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from morphogen.errors import InputError, nearest
from morphogen.experiment import BUILT_IN
from morphogen.paths import user_path

if TYPE_CHECKING:
    from morphogen.experiment import Shard

SOURCE_FORMS: Final = "stdlib-code, stdlib-docs, a file or folder (text, .jsonl, .parquet), or hf:NAME[:CONFIG]"
TEXT_COLUMN: Final = "text"
_PROSE = {".txt", ".text", ".md", ".rst", ".tex", ".org", ".html", ".csv"}
_CODE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".swift"}
_SCRIPTS = {
    ".js",
    ".jsx",
    ".ts",
    ".tsx",
    ".css",
    ".rb",
    ".php",
    ".pl",
    ".lua",
    ".r",
    ".jl",
    ".hs",
    ".ml",
    ".sh",
    ".sql",
}
TEXT_SUFFIXES: Final = frozenset(_PROSE | _CODE | _SCRIPTS)
RECORD_SUFFIXES: Final = frozenset({".jsonl", ".parquet"})
#: A single text file is cut into documents at the first blank line after this many characters.
SECTION_CHARS: Final = 4096
#: ... and at the end of a line after this many, blank or not.
LONGEST_SECTION_CHARS: Final = 4 * SECTION_CHARS

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"})
_MADE_BY_BUILD = re.compile(r"^(config-|_sysconfigdata|_sysconfig_vars)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Document(NamedTuple):
    """One document. `key` is stable: the path inside its source, with line or row where a file holds many.

    origin: the `digest_of` a larger text that this one was taken from. Texts of one origin go into one split, so that
    a docstring is never held out while the module it stands in is trained on.
    """

    key: str
    text: str
    origin: bytes | None = None


def digest_of(text: str) -> bytes:
    """The hash that names a text: 16 bytes of BLAKE2b over its UTF-8."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def documents(shard: "Shard") -> Iterator[Document]:
    """The documents of `shard`, in a fixed order, at most `shard.max_documents` of them.

    Raises InputError when the source is missing, is not UTF-8, or has no `text` column.
    """
    with _readable(shard):
        yield from itertools.islice(_all_documents(shard), shard.max_documents)


def fingerprint(shard: "Shard") -> str:
    """A hash that changes when the source does, found without reading its text.

    Local sources: the list of files with sizes and modification times. `hf:` sources on the hub: name, configuration,
    revision and split, so an unpinned revision keeps the first version that was fetched.

    Raises InputError when the source is missing, or a file of it is (a link that leads nowhere).
    """
    with _readable(shard):
        return hashlib.blake2b(json.dumps(_identity(shard)).encode(), digest_size=16).hexdigest()


def _identity(shard: "Shard") -> list[object]:
    """What `fingerprint` hashes."""
    identity: list[object] = [shard.source, shard.max_documents]
    name = _hub_name(shard.source)
    if name is not None:
        identity += [shard.split, shard.revision]
    if name is None or _path(shard, name[0]).exists():
        root, paths = _files(shard) if name is None else _everything_below(_path(shard, name[0]))
        identity += [str(root.resolve()), sys.version if shard.source in BUILT_IN else None]
        stats = [(path, path.stat()) for path in paths]
        identity += [(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return identity


@contextmanager
def _readable(shard: "Shard") -> Iterator[None]:
    """InputError for what the operating system refuses inside."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{_place(shard)}: cannot read {error.filename} ({error.strerror})") from error


def is_costly(shard: "Shard") -> bool:
    """Whether reading the source costs a download or much parsing, so that a copy of its text is worth keeping."""
    return shard.source == "stdlib-docs" or _hub_name(shard.source) is not None


def _all_documents(shard: "Shard") -> Iterator[Document]:
    place = _place(shard)
    if (name := _hub_name(shard.source)) is not None:
        yield from _from_hub(*name, shard)
        return
    root, paths = _files(shard)
    if shard.source == "stdlib-docs":
        yield from _topics(root)
        yield from _docstrings(root, paths)
        return
    alone = _path(shard, shard.source).is_file()
    for path in paths:
        key = path.relative_to(root).as_posix()
        suffix = path.suffix.lower()
        if suffix == ".jsonl":
            yield from _read_jsonl(path, place, key)
        elif suffix == ".parquet":
            yield from _read_parquet(path, place, key)
        elif alone:
            yield from _read_sections(path, place, key)
        elif shard.source == "stdlib-code":
            yield Document(key, _read_python(path))
        else:
            yield Document(key, _read_text(path, place))


# -- which files


def _place(shard: "Shard") -> str:
    return f"data source {shard.source!r}"


def _path(shard: "Shard", name: str) -> Path:
    """What `name` stands for on disk, in the source of `shard`."""
    return user_path(name, _place(shard))


def _hub_name(source: str) -> tuple[str, str | None] | None:
    """`hf:NAME[:CONFIG]` as (name, config); None for other sources."""
    if not source.startswith("hf:"):
        return None
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise InputError(f"data source {source!r}: names no data set, expected hf:NAME[:CONFIG]")
    return name, config or None


def _files(shard: "Shard") -> tuple[Path, list[Path]]:
    """The root that keys are relative to, and the files to read in order."""
    if shard.source in BUILT_IN:
        return _library_files(shard)
    path = _path(shard, shard.source)
    if path.is_file():
        return path.parent, [path]
    if not path.is_dir():
        raise InputError(_missing(shard, path))
    wanted = TEXT_SUFFIXES | RECORD_SUFFIXES
    paths = [found for found in _everything_below(path)[1] if found.suffix.lower() in wanted]
    if not paths:
        raise InputError(f"{_place(shard)}: the folder holds no text; files are read that end in {_listed(wanted)}")
    return path, paths


def _library_files(shard: "Shard") -> tuple[Path, list[Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_LIBRARY and not _MADE_BY_BUILD.match(name)]
        paths += [Path(folder, name) for name in files if name.endswith(".py") and not _MADE_BY_BUILD.match(name)]
    if not paths:
        raise InputError(f"{_place(shard)}: this Python keeps no library sources in {root}; expected {SOURCE_FORMS}")
    return root, sorted(paths)


def _everything_below(path: Path) -> tuple[Path, list[Path]]:
    """All files of a folder but hidden ones, sorted; or the file itself."""
    if path.is_file():
        return path.parent, [path]
    paths = []
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not name.startswith(".")]
        paths += [Path(folder, name) for name in files if not name.startswith(".")]
    return path, sorted(paths)


def _missing(shard: "Shard", path: Path) -> str:
    neighbours = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, [*BUILT_IN, *neighbours])
    tail = f"; did you mean {hint!r}?" if hint else ""
    return f"{_place(shard)}: no such file or folder, expected {SOURCE_FORMS}{tail}"


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))


# -- reading files


def _read_text(path: Path, place: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: {path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _read_python(path: Path) -> str:
    """A library source in the encoding it declares (PEP 263)."""
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding)


def _read_sections(path: Path, place: str, key: str) -> Iterator[Document]:
    """A text file given by itself, cut into sections (a single document could not be split); nothing is lost."""
    lines: list[str] = []
    size = first = 0
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, line in enumerate(stream, start=1):
                lines.append(line)
                size += len(line)
                if size >= LONGEST_SECTION_CHARS or (size >= SECTION_CHARS and not line.strip()):
                    yield Document(f"{key}:{first + 1}", "".join(lines))
                    lines, size, first = [], 0, number
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: {path} is not UTF-8 text: {error.reason} after line {first + len(lines)}") from None
    if lines:
        yield Document(f"{key}:{first + 1}", "".join(lines))


def _read_jsonl(path: Path, place: str, key: str) -> Iterator[Document]:
    """One document per line of a .jsonl file, from the field `text`; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{place}: {path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise InputError(f"{place}: {path}:{number}: got {type(row).__name__}, expected an object with 'text'")
            yield Document(f"{key}:{number}", _text_of(row, f"{place}: {path}:{number}"))


def _read_parquet(path: Path, place: str, key: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if TEXT_COLUMN not in columns:
                raise InputError(_no_text(f"{place}: {path}", columns))
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[TEXT_COLUMN]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield Document(f"{key}:{row}", _text_of({TEXT_COLUMN: text}, f"{place}: {path} row {row}"))
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{place}: {path} is not a readable parquet file ({error})") from None


def _from_hub(name: str, config: str | None, shard: "Shard") -> Iterator[Document]:
    import datasets

    place, here = _place(shard), _path(shard, name)
    name = str(here) if here.exists() else name
    try:
        rows = datasets.load_dataset(name, config, split=shard.split, revision=shard.revision, streaming=True)
        for number, row in enumerate(rows):
            yield Document(f"{shard.split}:{number}", _text_of(row, f"{place} row {number}"))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        wanted = f"name {name!r}, config {config!r}, revision {shard.revision!r}, split {shard.split!r}"
        raise InputError(
            f"{place}: datasets cannot read it ({wanted}): {reason}. Check the name and the network, or use another "
            f"source: {SOURCE_FORMS}"
        ) from error


def _text_of(row: dict[str, object], place: str) -> str:
    """The row's text; halves of surrogate pairs, which no encoding can store, become U+FFFD."""
    if TEXT_COLUMN not in row:
        raise InputError(_no_text(place, row))
    text = row[TEXT_COLUMN]
    if not isinstance(text, str):
        raise InputError(f"{place}: 'text' is {type(text).__name__}, expected a string")
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def _no_text(place: str, columns: "dict[str, object] | list[str]") -> str:
    hint = nearest(TEXT_COLUMN, columns)
    tail = f"; rename {hint!r} if that is the text" if hint else ""
    return f"{place}: no column 'text', found {', '.join(sorted(columns)) or 'none'}{tail}"


# -- documentation of the library


def _topics(root: Path) -> Iterator[Document]:
    """The language reference that `pydoc` carries, parsed and not imported."""
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise InputError(f"data source 'stdlib-docs': this Python has no {path}; expected {SOURCE_FORMS}")
    for node in ast.parse(_read_python(path)).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["topics"]:
            for topic, text in sorted(ast.literal_eval(node.value).items()):
                yield Document(f"topics/{topic}", text)


def _docstrings(root: Path, paths: list[Path]) -> Iterator[Document]:
    """One document per library module: its docstrings, each under its qualified name."""
    for path in paths:
        source = _read_python(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the library's own escapes, at parse time
                module = ast.parse(source)
        except SyntaxError:
            continue  # some distributions carry templates that are not Python
        key = path.relative_to(root).as_posix()
        name = key.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if entries := [f"{where}\n\n{text}\n" for where, text in _docstrings_below(module, name)]:
            yield Document(f"docstrings/{key}", "\n".join(entries), digest_of(source))


def _docstrings_below(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_below(child, f"{name}.{child.name}")
