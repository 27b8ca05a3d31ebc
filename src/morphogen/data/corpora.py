"""Text sources: what a shard's `source` names, read as a stream of documents.

All that is under a source is read, or left out for a reason that is told; what cannot be read is an error, unless the
shard says to skip it. Nothing here imports a module of the corpus it reads, and only `hf:` sources ever touch the
network. An installed package adds a source of its own as an entry point of the group `morphogen.corpora`: a function
from what follows the colon in `NAME:ARGUMENTS` to its `Document`s, in a fixed order.
"""

import hashlib
import itertools
import json
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from morphogen import plugins
from morphogen.data import hub
from morphogen.data.document import Document, Reader
from morphogen.data.library import library_files
from morphogen.data.listing import files_below, kind_of
from morphogen.data.records import read_arrow, read_csv, read_json, read_jsonl, read_parquet
from morphogen.data.textfiles import COMPRESSED, LONGEST_SECTION_CHARS, WHOLE_CHARS, guarded, read_alone, read_whole
from morphogen.errors import InputError, nearest, unknown
from morphogen.paths import user_path
from morphogen.sections.built_in import CORPORA, built_in, forms
from morphogen.sections.values import changed

if TYPE_CHECKING:
    from morphogen.experiment import Shard

#: Of how sources are read: part of every fingerprint, so that what another version read is read again.
VERSION: Final = 2
_PROSE = ".txt .text .md .markdown .rst .tex .org .html .htm .log"
_CODE = ".py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .kt .scala .swift"
_SCRIPTS = ".js .jsx .ts .tsx .css .rb .php .pl .lua .r .jl .hs .ml .sh .sql"
TEXT_SUFFIXES: Final = frozenset(f"{_PROSE} {_CODE} {_SCRIPTS}".split())
_RECORDS: Final = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
#: In a folder that `datasets.save_to_disk` wrote: what describes the .arrow files, or its splits, a folder each.
_DESCRIBING: Final = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_SPLITS, _STATE = "dataset_dict.json", "state.json"
#: How the names begin of what `datasets` keeps there of later steps.
_DERIVED: Final = "cache-"
_ARCHIVES: Final = frozenset({".zip", ".tar", ".tgz", ".7z", ".rar"})
#: In a folder of fewer text files than this a file is cut into sections sooner, so that there is something to split.
FEW_FILES: Final = 20


def documents(shard: "Shard", reader: Reader | None = None) -> Iterator[Document]:
    """The documents of `shard`, in a fixed order, at most `shard.max_documents` of them.

    reader: keeps account of what is read and left out. Raises InputError when the source is missing, or holds what
    cannot be read (with `on_error: skip` that is left out).
    """
    reader = reader or reader_of(shard)
    with _readable(shard):
        for document in itertools.islice(_all_documents(shard, reader), shard.max_documents):
            reader.documents += 1
            yield document


def reader_of(shard: "Shard") -> Reader:
    """A reader of this shard that has read nothing yet."""
    return Reader(_place(shard), shard.text_field, shard.on_error == "skip")


def fingerprint(shard: "Shard") -> str:
    """A hash that changes when the source does, found without reading its text.

    A corpus that comes with morphogen: its version, or the library's files. A package's: its name, arguments and the
    package's version.
    Local sources: the list of files with sizes and modification times. `hf:` sources on the hub: name, configuration,
    revision and split, so an unpinned revision keeps the first version that was fetched.

    Raises InputError when the source is missing, or something of it cannot be looked at (a link that leads nowhere).
    """
    with _readable(shard):
        return hashlib.blake2b(json.dumps(_identity(shard)).encode(), digest_size=16).hexdigest()


def _identity(shard: "Shard") -> list[object]:
    """What `fingerprint` hashes."""
    identity: list[object] = [VERSION, shard.source, shard.max_documents, shard.text_field, shard.on_error]
    if shard.corpus is not None:
        _offered(shard.corpus[0])
        return [*identity, plugins.version(plugins.CORPORA, shard.corpus[0])]
    ours = built_in(shard.source)
    if ours is not None and ours[0].version is not None:
        return [*identity, ours[0].version]
    reader = reader_of(shard)
    name = _hub_name(shard.source)
    if name is not None:
        identity += [shard.split, shard.revision]
    if name is None or _path(shard, name[0]).exists():
        root, paths = _files(shard, reader) if name is None else _everything(_path(shard, name[0]), reader)
        identity += [str(root.resolve()), None if ours is None else sys.version, str(reader.account())]
        stats = [(path, path.stat()) for path in paths]
        identity += [(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return identity


@contextmanager
def _readable(shard: "Shard") -> Iterator[None]:
    """InputError for what the operating system refuses inside."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{_place(shard)}: cannot read {error.filename} ({error.strerror or error})") from error


def is_costly(shard: "Shard") -> bool:
    """Whether reading the source costs a download or much parsing, so that a copy of its text is worth keeping."""
    if (ours := built_in(shard.source)) is not None:
        return ours[0].costly
    return _hub_name(shard.source) is not None or shard.corpus is not None


def _offered(name: str) -> Callable[..., Iterable[Document]]:
    """The corpus of an installed package."""
    return plugins.choose(plugins.CORPORA, {}, name)


def _of_package(name: str, arguments: str, reader: Reader) -> Iterator[Document]:
    """What an installed package's corpus yields. InputError whatever goes wrong in it, as it is anybody's code."""
    try:
        for document in _offered(name)(arguments):
            if not (isinstance(document, Document) and isinstance(document.text, str)):
                raise TypeError(f"it yields {type(document).__name__}, expected Document(key, text)")
            yield document
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(f"{reader.place}: plug-in {name}: {type(error).__name__}: {error}") from error


def _all_documents(shard: "Shard", reader: Reader) -> Iterator[Document]:
    if (name := _hub_name(shard.source)) is not None:
        here = _path(shard, name[0])
        if (saved := _saved(here, shard)) is not None:
            paths = files_below(saved, reader, _unfit_of_saved)
            reader.files = len(paths)
            for path in paths:
                with guarded(path, reader):
                    yield from read_arrow(path, f"{shard.split}:{path.name}", reader)
            return
        yield from hub.rows_of(str(here) if here.exists() else name[0], name[1], shard, reader)
        return
    if shard.corpus is not None:
        yield from _of_package(*shard.corpus, reader)
        return
    if (ours := built_in(shard.source)) is not None:
        corpus, arguments = ours
        yield from corpus.function()(arguments, reader)
        return
    root, paths = _files(shard, reader)
    reader.files = len(paths)
    alone = _path(shard, shard.source).is_file()
    texts = sum(_ending(path) not in _RECORDS for path in paths)
    most = WHOLE_CHARS if texts >= FEW_FILES else LONGEST_SECTION_CHARS
    for path in paths:
        key = path.relative_to(root).as_posix()
        with guarded(path, reader):
            if (read := _RECORDS.get(_ending(path))) is not None:
                yield from read(path, key, reader)
            else:
                yield from read_alone(path, key, reader) if alone else read_whole(path, key, reader, most)


# -- which files


def _place(shard: "Shard") -> str:
    return f"data source {shard.source!r}"


def check_reachable(shard: "Shard") -> None:
    """InputError where a source is one of a hub that cannot be asked for it."""
    if (name := _hub_name(shard.source)) is not None:
        hub.check_reachable(name[0], _place(shard))


def is_elsewhere(shard: "Shard") -> bool:
    """Whether it is a data set of the hub, not a folder here."""
    name = _hub_name(shard.source)
    return name is not None and not _path(shard, name[0]).exists()


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


def _files(shard: "Shard", reader: Reader) -> tuple[Path, list[Path]]:
    """The root that keys are relative to, and the files to read in order; `reader` is told of what is left out."""
    if built_in(shard.source) is not None:
        return library_files(reader)
    path = _path(shard, shard.source)
    if path.is_dir():
        paths = files_below(path, reader, _unfit)
        if not paths:
            wanted = ", ".join(sorted({*TEXT_SUFFIXES, *_RECORDS}))
            said = "; ".join(map(str, reader.account().left_out))
            left = f"; left out: {said}" if said else ""
            raise InputError(f"{reader.place}: the folder holds no text; files are read that end in {wanted}{left}")
        return path, paths
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(_missing(shard, path)) from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{reader.place}: is a {kind_of(mode)}, expected {_source_forms()}")
    if (ending := _ending(path)) in _ARCHIVES or (ending in (".parquet", ".arrow") and _is_compressed(path)):
        raise InputError(f"{reader.place}: is an archive ({_endings(path)}), which is not read; unpack it")
    if shard.text_field is not None and ending not in _RECORDS:
        records = ", ".join(sorted(_RECORDS))
        raise InputError(f"{reader.place}: text_field is {shard.text_field!r}, but only records have one ({records})")
    return path.parent, [path]


def _saved(folder: Path, shard: "Shard") -> Path | None:
    """Where the .arrow files of a split lie, in a folder that `datasets.save_to_disk` wrote; None for other folders."""
    if not (folder / _SPLITS).is_file():
        if not (folder / _STATE).is_file():
            return None
        _check_split(folder / _STATE, shard)
        return folder
    if not (folder / shard.split / _STATE).is_file():
        splits = [path.parent.name for path in folder.glob(f"*/{_STATE}")]
        raise InputError(unknown(f"{_place(shard)}: split", shard.split, splits))
    return folder / shard.split


def _check_split(state: Path, shard: "Shard") -> None:
    """InputError where a split is asked for of a data set that was saved alone, unless it is the one that it was."""
    try:
        told = json.loads(state.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{_place(shard)}: {state}: not JSON ({error})") from error
    split = told.get("_split") if isinstance(told, dict) else None
    if "split" in changed(shard) and shard.split != split:
        held = f"the split {split!r} alone" if split else "one data set without splits"
        raise InputError(f"{_place(shard)}: split is {shard.split!r}, but the folder holds {held}")


def _everything(path: Path, reader: Reader) -> tuple[Path, list[Path]]:
    """All files of a folder but hidden ones; or the file itself."""
    return (path.parent, [path]) if path.is_file() else (path, files_below(path, reader))


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def _ending(path: Path) -> str:
    """The ending that says what a file holds, in small letters: that before `.gz` and its like."""
    return Path(path.stem).suffix.lower() if _is_compressed(path) else path.suffix.lower()


def _endings(path: Path) -> str:
    return _ending(path) + (path.suffix.lower() if _is_compressed(path) else "")


def _unfit(path: Path) -> str | None:
    """Why a file of a folder is not read."""
    if _ending(path) in (".parquet", ".arrow") and _is_compressed(path):
        return f"compressed {_ending(path)} files"
    if path.name in _DESCRIBING and any((path.parent / name).exists() for name in (_STATE, _SPLITS)):
        return "files that describe a saved data set"
    if _ending(path) in TEXT_SUFFIXES or _ending(path) in _RECORDS:
        return None
    return f"files that end in {_endings(path)}" if _endings(path) else "files without an ending"


def _unfit_of_saved(path: Path) -> str | None:
    """Why a file is not read of those of a split that `datasets.save_to_disk` wrote."""
    if _ending(path) == ".arrow" and path.name.startswith(_DERIVED):
        return "files that were derived from a saved data set"
    return _unfit(path) or (None if _ending(path) == ".arrow" else "files that are no part of a saved data set")


def _source_forms() -> str:
    """What a source may be, for messages."""
    names = [*forms(), *plugins.names(plugins.CORPORA)]
    files = "a file or folder (text, .jsonl, .json, .csv, .tsv, .parquet, .arrow)"
    return f"{', '.join(names)}, {files}, or hf:NAME[:CONFIG]"


def _missing(shard: "Shard", path: Path) -> str:
    neighbours = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, [*CORPORA, *plugins.names(plugins.CORPORA), *neighbours])
    tail = f"; did you mean {hint!r}?" if hint else ""
    return f"{_place(shard)}: no such file or folder, expected {_source_forms()}{tail}"
