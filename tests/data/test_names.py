"""Names of shards: what figures are called after."""

import itertools

import pytest
from pydantic import ValidationError

from morphogen.experiment import Data, Shard


def shard(**fields: object) -> Shard:
    return Shard.model_validate(fields)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("stdlib-code", "stdlib_code"),
        ("hf:org/Set:config", "org_set_config"),
        ("./data/A--b__c.txt/", "data_a_b_c_txt"),
        ("数据", "数据"),
        ("Data/Größe.txt", "data_größe_txt"),
        ("Gro\u0308ße", "größe"),
        ("हिन्दी", "हिन्दी"),
    ],
)
def test_a_name_follows_the_source(source: str, name: str) -> None:
    assert shard(source=source).name == name


def test_sources_in_any_script_have_names_of_their_own() -> None:
    sources = ["数据", "语料", "हिन्दी", "हन्दी", "ไทย", "ไท", "данные", "📚", "📗", "📚a", "📗a", ".", "..", "_", "-"]
    names = [shard(source=source).name for source in sources]
    assert len(set(names)) == len(names)
    assert all(name.strip("_") for name in names)
    Data.model_validate({"shards": [{"source": source} for source in sources]})


def test_a_shard_may_be_given_a_name() -> None:
    given = shard(source="a.txt", name="wiki_2024")
    assert given.name == "wiki_2024"
    assert Shard.model_validate(given.model_dump()) == given
    assert shard(source="probe:mqar", name="recall").name == "recall"


@pytest.mark.parametrize("name", ["a b", "a-b", "", "__", "a/b", "a\n", "📚"])
def test_a_name_is_letters_and_digits(name: str) -> None:
    with pytest.raises(ValidationError, match="expected letters, digits and _"):
        shard(source="a.txt", name=name)


@pytest.mark.parametrize("field", ["shards", "eval_shards"])
def test_a_clash_of_names_says_the_way_out(field: str) -> None:
    for one, other in itertools.permutations(["a-b.txt", "a_b.txt"]):
        with pytest.raises(ValidationError, match=r"share the name 'a_b_txt'.*such as name: a_b_txt_2"):
            Data.model_validate({field: [{"source": one}, {"source": other}]})
        Data.model_validate({field: [{"source": one}, {"source": other, "name": "another"}]})
    with pytest.raises(ValidationError, match="bpb_sample is another figure"):
        Data.model_validate({field: [{"source": "sample"}]})
