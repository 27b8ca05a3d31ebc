"""The library of the Python that runs, read as text; no module of it is imported for that."""

import ast
import io
import os
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from morphogen.data.document import Document, Reader, digest_of
from morphogen.errors import InputError

_NOT_LIBRARY: Final = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
)
_MADE_BY_BUILD = re.compile(r"^(config-|_sysconfigdata|_sysconfig_vars)")


def library_files(reader: Reader) -> tuple[Path, list[Path]]:
    """The library's folder and its modules, without tests and what is installed beside it."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _NOT_LIBRARY and not _MADE_BY_BUILD.match(name)]
        paths += [Path(folder, name) for name in files if name.endswith(".py") and not _MADE_BY_BUILD.match(name)]
    if not paths:
        raise InputError(f"{reader.place}: this Python keeps no library sources in {root}")
    return root, sorted(paths)


def code(arguments: str, reader: Reader) -> Iterator[Document]:
    """The corpus `stdlib-code`."""
    root, paths = library_files(reader)
    reader.files = len(paths)
    yield from modules(root, paths)


def docs(arguments: str, reader: Reader) -> Iterator[Document]:
    """The corpus `stdlib-docs`."""
    root, paths = library_files(reader)
    reader.files = len(paths)
    yield from topics(root, reader)
    yield from docstrings(root, paths)


def modules(root: Path, paths: list[Path]) -> Iterator[Document]:
    """One document per module."""
    for path in paths:
        yield Document(path.relative_to(root).as_posix(), _read_python(path))


def _read_python(path: Path) -> str:
    """A library source in the encoding it declares (PEP 263)."""
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding)


def topics(root: Path, reader: Reader) -> Iterator[Document]:
    """The language reference that `pydoc` carries, parsed and not imported."""
    path = root / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise InputError(f"{reader.place}: this Python has no {path}")
    for node in ast.parse(_read_python(path)).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["topics"]:
            for topic, text in sorted(ast.literal_eval(node.value).items()):
                yield Document(f"topics/{topic}", text)


def docstrings(root: Path, paths: list[Path]) -> Iterator[Document]:
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
