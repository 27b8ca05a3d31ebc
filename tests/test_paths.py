"""`~` is filled in wherever a path is given."""

import json
from pathlib import Path

import pytest
import tokenizers

from morphogen.blueprint.yaml import read
from morphogen.data.corpora import documents
from morphogen.data.tokenizers import from_hugging_face
from morphogen.errors import InputError
from morphogen.experiment import Shard
from morphogen.paths import user_path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_home_is_filled_in_and_one_that_nobody_has_is_named(home: Path) -> None:
    assert user_path("~/a", "x") == home / "a"
    assert user_path("a/~", "x") == Path("a/~")
    with pytest.raises(InputError, match="--out: got '~nobody-at-all/x', but nobody has that home folder"):
        user_path("~nobody-at-all/x", "--out")


@pytest.mark.parametrize("path", ["", " ", "\t\n", "a\0b"])
def test_what_is_no_path_is_named(path: str) -> None:
    """Nothing is not the working directory: `--out "$UNSET"` is a mistake."""
    with pytest.raises(InputError, match=r"^--out: got .*, expected a path$"):
        user_path(path, "--out")


@pytest.mark.parametrize("source", ["~/text", "~/text/a.txt", "hf:~/text"])
def test_sources_may_stand_at_home(source: str, home: Path) -> None:
    (home / "text").mkdir()
    (home / "text" / "a.txt").write_text("words\n")
    assert [document.text.strip() for document in documents(Shard(source=source))] == ["words"]


@pytest.mark.parametrize("name", ["~/tok", "~/tok/tokenizer.json"])
def test_tokenizers_may_stand_at_home(name: str, home: Path) -> None:
    (home / "tok").mkdir()
    tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).save(str(home / "tok" / "tokenizer.json"))
    (home / "tok" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert from_hugging_face(name).vocab_size == 2


def test_yaml_files_may_stand_at_home(home: Path) -> None:
    (home / "a.yaml").write_text("model: 1\n")
    assert read("~/a.yaml").plain() == {"model": 1}
    with pytest.raises(InputError, match=r"~/b.yaml: no such file; did you mean '.*/a.yaml'"):
        read("~/b.yaml")
