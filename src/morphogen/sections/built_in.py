"""The corpora that come with morphogen: the one place that a new one is entered in."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Final


@dataclass(frozen=True)
class BuiltIn:
    """One corpus.

    Attributes:
        read: `module:function`, which is imported when the corpus is read: from what follows the colon in the source,
            and a `Reader`, to documents in a fixed order.
        what: What is read, as docs/data.md has it.
        document: What one document is.
        version: Goes up when the function gives other documents, so that they are read again. None for what is the
            running Python's library, which is known by its files.
        arguments: What may follow the name, such as `[:COUNT]`; empty: nothing.
        costly: Whether a copy of its text is worth keeping.
    """

    read: str
    what: str
    document: str
    version: int | None
    arguments: str = ""
    costly: bool = False

    def function(self) -> Any:
        """What `read` names."""
        return EntryPoint("", self.read, "").load()


CORPORA: Final = {
    "stdlib-code": BuiltIn(
        "morphogen.data.library:code",
        "the running Python's library, without tests and installed packages",
        "a module",
        version=None,
    ),
    "stdlib-docs": BuiltIn(
        "morphogen.data.library:docs",
        "`pydoc` topics, and the docstrings of the library (parsed, never imported)",
        "a topic; a module's docstrings",
        version=None,
        costly=True,
    ),
}


def forms() -> list[str]:
    """How each stands in a source."""
    return [name + corpus.arguments for name, corpus in CORPORA.items()]


def built_in(source: str) -> tuple[BuiltIn, str] | None:
    """The corpus that a source names, and what follows its colon; None for other sources."""
    name, colon, arguments = source.partition(":")
    found = CORPORA.get(name)
    return None if found is None or (colon and not found.arguments) else (found, arguments)
