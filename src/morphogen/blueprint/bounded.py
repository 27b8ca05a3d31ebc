"""YAML as far as an experiment has a use for it: no file makes reading it take long, run code or fill the memory.

Bounded are the size of the file, how deep it nests, and how many nodes it has once every alias stands for what it
repeats. Dates are text, tags say nothing, and a number of more digits than any that is read stays text.
"""

from pathlib import Path
from stat import S_ISREG
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, ScalarEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from morphogen.errors import InputError

#: A file holds at most so many bytes,
MOST_BYTES = 2**20
#: and nests so deep;
DEEPEST = 50
#: so many nodes it has at most, every alias counting as what it stands for.
MOST_NODES = 30_000
#: Longer whole numbers stay text; the longest that is read has 19 digits.
MOST_DIGITS = 40

_PREFIX = "tag:yaml.org,2002:"
_TEXT = Tag(suffix=f"{_PREFIX}str")
_INT = f"{_PREFIX}int"
_DATE = f"{_PREFIX}timestamp"
#: What the first bytes of a file in another encoding are -> its name.
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


def text_of(path: Path, file: str) -> str:
    """The text of a file called `file` in messages. InputError where it is no file, too large, or not UTF-8."""
    with path.open("rb") as stream:
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise InputError(f"{file}: more than {MOST_BYTES:,} bytes, which no file of this kind has")
    for mark, encoding in _MARKS.items():
        if raw.startswith(mark):
            raise InputError(f"{file}:1:1: {encoding} text, expected UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(raw[: error.start].decode("utf-8", errors="replace"))
        raise InputError(f"{file}:{line}:{column}: not UTF-8 text: the byte {raw[error.start]:#04x}") from None


def check_regular(path: Path, file: str) -> None:
    """InputError for a pipe or a device, whose end may never come. OSError where there is nothing."""
    if not S_ISREG(path.stat().st_mode):
        raise InputError(f"{file}: is a {'folder' if path.is_dir() else 'pipe or a device'}, expected a file")


def compose(text: str, file: str) -> Any:
    """The tree of a YAML text, with comments and places. InputError with the place where it is not YAML, or more than
    is read."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.Composer = _Composer
    yaml.Resolver = _Resolver
    try:
        return yaml.load(text)
    except ReaderError as error:
        line, column = _position(text[: error.position])
        code = ord(error.character) if isinstance(error.character, str | bytes) else error.character
        raise InputError(f"{file}:{line}:{column}: not valid YAML: the character U+{code:04X}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise InputError(f"{where}: {_said(error)}") from None
    except (YAMLError, ValueError, AttributeError) as error:  # the library's own, for a directive or a version
        raise InputError(f"{file}: not valid YAML: {(str(error) or repr(error)).splitlines()[0][:200]}") from None


def _said(error: MarkedYAMLError) -> str:
    """What is wrong, in one line."""
    problem = str(error.problem or error.context).splitlines()[0]
    if problem.startswith("found duplicate key"):
        problem = problem.partition(" with value")[0]
    if problem.startswith("but found another document"):
        problem = "a second document begins here, expected one"
    return problem if isinstance(error, _TooMuchError) else f"not valid YAML: {problem[:200]}"


def _position(before: str) -> tuple[int, int]:
    """Line and column, from 1, of what follows a text."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _TooMuchError(ComposerError):
    """YAML, but not of the kind that is read here."""


class _Composer(Composer):
    """Builds the tree as long as it stays within bounds."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader)
        self.warn_double_anchors = False
        self.levels = self.nodes = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node. What an alias repeats counts again."""
        event = self.parser.peek_event()
        self.levels += 1
        if self.levels > DEEPEST:
            self._refuse(f"nested deeper than {DEEPEST} levels", event)
        before = self.nodes
        if isinstance(event, AliasEvent):
            self.nodes += self._repeated(event)
            node = super().compose_node(parent, index)
        else:
            self._check_tag(event)
            if isinstance(parent, MappingNode) and index is None and not isinstance(event, ScalarEvent):
                self._refuse("a key that is a list or a mapping, expected a name", event)
            self.nodes += 1
            node = super().compose_node(parent, index)
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > MOST_NODES:
            self._refuse(f"more than {MOST_NODES:,} values, each alias counting as what it repeats", event)
        self.levels -= 1
        return node

    def _repeated(self, event: Any) -> int:
        """How many nodes an alias stands for."""
        node = self.anchors.get(event.anchor)
        if node is None:
            return 0  # the library says so
        if id(node) not in self.sizes:
            self._refuse(f"the alias *{event.anchor} stands within what it repeats", event)
        return self.sizes[id(node)]

    def _check_tag(self, event: Any) -> None:
        tag = event.ctag
        if tag is None or str(tag) == "!" or (isinstance(event, ScalarEvent) and str(tag) == f"{_PREFIX}str"):
            return
        shown = str(tag).replace(_PREFIX, "!!")
        self._refuse(f"the tag {shown[:60]} has no meaning here, expected plain values", event)

    def _refuse(self, said: str, event: Any) -> None:
        raise _TooMuchError(None, None, said, event.start_mark)


class _Resolver(VersionedResolver):
    """Tells numbers from text. What looks like a date is text."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node without one."""
        tag = super().resolve(kind, value, implicit)
        if kind is ScalarNode and (str(tag) == _DATE or (str(tag) == _INT and len(value) > MOST_DIGITS)):
            return _TEXT
        return tag
