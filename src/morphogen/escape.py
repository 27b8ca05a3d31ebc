"""Text from data, made harmless for where it is shown: names, errors and plug-ins' words may hold anything.

Every sink has its one function: a terminal (`visible`, `visible_lines`), JSON shown on one (`json_shown`), XML and HTML
(`xml`, or `harmless` where a template escapes), tables for spreadsheets (`csv_cell`).
"""

import re
from html import escape

#: What a terminal obeys rather than shows, what reorders the text around it, and halves of characters.
_OBEYED = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
_CONTROL = re.compile(f"[{_OBEYED}]")
_CONTROL_BUT_NEWLINE = re.compile(f"(?!\n)[{_OBEYED}]")
#: Characters that no XML 1.0 document may hold, escaped or not, and those that are obeyed.
_NOT_IN_XML = re.compile(f"(?![\t\n\r])[{_OBEYED}\ufffe\uffff]")
_HALF = re.compile("[\ud800-\udfff]")
#: A spreadsheet takes a cell that begins so for a formula.
_FORMULA = re.compile(r"^(\s*[=+\-@]|[\t\r\n])")


def visible(text: str) -> str:
    """`text` in one line, with every character that a terminal would obey spelt out: `\\x1b`, `\\u202e`."""
    return _CONTROL.sub(lambda found: _spelt(found[0]), text)


def visible_lines(text: str) -> str:
    """As `visible`, but line ends stay."""
    return _CONTROL_BUT_NEWLINE.sub(lambda found: _spelt(found[0]), text)


def json_shown(text: str) -> str:
    """JSON text, the same data, that a terminal can show: such characters occur in its strings alone."""
    return _CONTROL_BUT_NEWLINE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def harmless(text: str) -> str:
    """`text` with what XML forbids or a reader obeys as U+FFFD; escaping is left to whatever writes it out."""
    return _NOT_IN_XML.sub("\ufffd", text)


def xml(text: object) -> str:
    """`text` escaped for XML and HTML, in text and in attributes, and made harmless."""
    return escape(harmless(str(text)))


def csv_cell(text: str) -> str:
    """`text` that no spreadsheet takes for a formula, without what is obeyed."""
    shown = visible(text)
    return f"'{shown}" if _FORMULA.match(text) else shown


def whole_characters(text: str) -> str:
    """`text` that UTF-8 can hold: halves of characters, as in names of files that are not UTF-8, spelt out. In the
    strings of JSON text they are the escapes that mean the same."""
    return _HALF.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _spelt(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
