"""The corpora and probes that come with morphogen: the one place that a new one is entered in."""

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


@dataclass(frozen=True)
class BuiltInProbe:
    """One kind of probe.

    Attributes:
        cls: `module:Class`, which is imported when sequences are made.
        size: Its size unless a source says another, as in `probe:mqar:8`; None: it has none.
        sizes: What its size counts, as docs/data.md has it; empty: nothing.
        what: What it asks.
        figure: One that it alone gives, so that there can be but one such probe; empty: none.
    """

    cls: str
    size: int | None
    sizes: str
    what: str
    figure: str = ""

    def kind(self) -> Any:
        """What `cls` names."""
        return EntryPoint("", self.cls, "").load()


_HOME = "morphogen.data.probes"
PROBES: Final = {
    "mqar": BuiltInProbe(f"{_HOME}.mqar:MQAR", 8, "PAIRS", "every key of some pairs once again", "long_recall"),
    "passkey": BuiltInProbe(f"{_HOME}.passkey:Passkey", 5, "TOKENS", "a key that stood anywhere in a haystack"),
    "induction": BuiltInProbe(f"{_HOME}.induction:Induction", None, "", "what followed a token the last time"),
    "selective_copy": BuiltInProbe(
        f"{_HOME}.copying:SelectiveCopy", 16, "TOKENS", "tokens from among blanks, in order"
    ),
    "noisy_recall": BuiltInProbe(f"{_HOME}.recall:NoisyRecall", 8, "PAIRS", "pairs that come again, among noise"),
    "fuzzy_recall": BuiltInProbe(f"{_HOME}.recall:FuzzyRecall", 4, "PAIRS", "keys and values of one to three tokens"),
    "compress": BuiltInProbe(f"{_HOME}.copying:Compress", None, "", "the whole first half of the sequence"),
    "memorize": BuiltInProbe(f"{_HOME}.recall:Memorize", 64, "KEYS", "values that weights have to hold"),
    "math": BuiltInProbe(f"{_HOME}.arithmetic:Arithmetic", 3, "DIGITS", "sums, digit by digit", "ppl_math"),
}
