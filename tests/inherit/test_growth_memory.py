"""What is remembered of growth: read where it lies, and told with its place where it cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from morphogen.errors import InputError
from morphogen.inherit.memory import FORMAT, memory_in
from morphogen.inherit.provenance import Provenance

BOOK = {"usage": {"10": [0.5, 0.5]}, "observed": [3, 3], "born": [None, 4], "below": {}, "changed": None}
MEMORY: dict[str, Any] = {
    "format": FORMAT, "of": "x", "tokens_per_step": 8, "rules": {"rule0": [1, 5, 40, {"trigger": "step", "at": 5}]},
    "last": [5, 40], "growths": 1, "losses": [2.5], "grad_norms": [0.5], "uses": [[{"b0": 0.5}]],
    "experts": {"step": 6, "books": {"b1": BOOK}},
}  # fmt: skip


def test_what_is_remembered_is_read() -> None:
    found = memory_in(json.dumps(MEMORY), "here")
    assert found is not None
    assert found.rules["rule0"][:3] == (1, 5, 40)
    assert found.experts.books["b1"].usage == {10: (0.5, 0.5)}
    assert memory_in("", "here") is None


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({name: value for name, value in MEMORY.items() if name != "format"}, "is of an older format, 1, and this"),
        ("{", "is damaged: it cannot be read"),
        ("[" * 100_000, "is damaged: it cannot be read"),
        ([], "what is remembered of growth: "),
        (None, "what is remembered of growth: "),
        ({**MEMORY, "format": 3}, "growth: format: "),
        ({**MEMORY, "rules": 3}, "growth: rules: "),
        ({**MEMORY, "last": [1]}, "growth: last"),
        ({**MEMORY, "uses": {}}, "growth: uses"),
        ({**MEMORY, "experts": {"step": 1, "books": {"b1": {**BOOK, "born": 3}}}}, "growth: experts.books.b1.born: "),
        ({**MEMORY, "more": 1}, "growth: more: "),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_the_file_that_it_is_in(told: Any, said: str) -> None:
    text = told if isinstance(told, str) else json.dumps(told)
    with pytest.raises(InputError) as error:
        Provenance(growth=text).remembered(Path("parent.safetensors"))
    assert str(error.value).startswith("parent.safetensors: what is remembered of growth")
    assert said in str(error.value)
