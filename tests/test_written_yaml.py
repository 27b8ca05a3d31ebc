"""What is written as YAML says the same to readers of YAML 1.1 and of 1.2."""

from typing import Any

import yaml as pyyaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from examples import up_to
from morphogen.blueprint.yaml import written

ODD = "no yes NO off y N ~ null 1e3 1e-8 0x1F 0o17 017 12:30 12:30:00 1_000 .5 5. .inf .nan + - = << ? | ! & * % @ ` # "
ODD += "2024-01-02 2024-01-02T10:00:00Z 1.2.3 \t \x85 \u2028 \ufeff \x00 \x7f a:b"
TEXTS = st.one_of(
    st.sampled_from([*ODD.split(" "), " ", "a: b", "a #b", " a", "a ", "a\n", "\na", "a\nb", "😀", "a " * 90]),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.from_regex(r"[-+]?[0-9.:_xeE+-]{1,12}", fullmatch=True),
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)


@settings(max_examples=up_to(300, fast=40))
@given(st.dictionaries(TEXTS, st.one_of(LEAVES, st.lists(LEAVES), st.dictionaries(TEXTS, LEAVES)), min_size=1))
def test_what_is_written_reads_the_same_in_yaml_1_1_and_1_2(data: dict[str, Any]) -> None:
    text = written(data)
    assert pyyaml.safe_load(text) == data
    assert YAML(typ="safe", pure=True).load(text) == data
