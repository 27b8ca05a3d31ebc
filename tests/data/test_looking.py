"""What `morphogen data` says of a text."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from morphogen.data.corpora import documents, reader_of
from morphogen.data.looking import looked_at
from morphogen.errors import InputError
from morphogen.experiment import Data, Shard
from tiny import Cli, write_config


def test_sizes_splits_and_what_stands_in_two_sources(
    data: Callable[..., Data], folder: Callable[..., str], tmp_path: Path
) -> None:
    one = folder()
    (tmp_path / "both").mkdir()
    for path in sorted(Path(one).iterdir())[:7]:
        (tmp_path / "both" / path.name).write_bytes(path.read_bytes())
    for i in range(40):
        (tmp_path / "both" / f"new{i}.txt").write_text(f"{i} is new, and there is nothing like {i} elsewhere. " * 4)
    shards = [{"source": one, "weight": 3.0}, {"source": str(tmp_path / "both")}, {"source": "probe:passkey:2"}]
    told = looked_at(data(seq_len=32, shards=shards), samples=2)
    first, second = told["sources"].values()
    assert (first["share"], second["share"]) == (0.75, 0.25)
    assert second["documents"] == 47
    assert sum(split["documents"] for split in second["splits"].values()) == 47
    assert second["bytes"] == sum(path.stat().st_size for path in (tmp_path / "both").iterdir())
    assert second["bytes_per_token"] == 1.0
    assert [len(found["samples"]) for found in (first, second)] == [2, 2]
    (overlap,) = told["overlap"]
    assert overlap["documents"] == 7
    assert list(overlap["share_of"].values()) == [pytest.approx(7 / len(list(Path(one).iterdir())), abs=1e-4), 0.1489]
    assert told["probes"] == {"passkey": {"lengths": [32], "chance": 1 / 129}}
    assert looked_at(data(seq_len=32, shards=shards), samples=2) == told


def test_texts_are_told_apart_by_their_names(data: Callable[..., Data], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"a": f"{i} is told " * 9, "b": f"{i % 30} is told " * 9}) + "\n" for i in range(60))
    )
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"a": f"{i} is new " * 9}) + "\n" for i in range(60)))
    one = {"source": str(tmp_path / "rows.jsonl"), "name": "one", "text_field": "a"}
    two = {**one, "name": "two", "text_field": "b"}
    told = looked_at(data(seq_len=32, shards=[one, two], eval_shards=[{"source": "probe:passkey:2"}]), samples=0)
    assert list(told["sources"]) == ["shards: one", "shards: two"]
    assert told["overlap"] == [{"documents": 30, "share_of": {"one": 0.5, "two": 1.0}}]
    accounts = [note for note in told["notes"] if "text of" in note]
    assert len(accounts) == 2
    assert "(two)" in accounts[1]
    held = [{**one, "source": str(tmp_path / "other.jsonl")}, one | {"name": "three"}]
    told = looked_at(data(seq_len=32, shards=[one, two], eval_shards=held), samples=0)
    assert [list(pair["share_of"]) for pair in told["overlap"]] == [["shards: one", "two"]]
    assert list(told["sources"])[2:] == ["eval_shards: one", "eval_shards: three"]


def test_the_command_shows_it_for_people_and_for_programs(tmp_path: Path, cli: Cli) -> None:
    path = write_config(tmp_path)
    code, out, err = cli("data", str(path), "--json")
    assert code == 0, err
    (found,) = json.loads(out)["sources"].values()
    assert found["documents"] == 40
    code, out, _ = cli("data", str(path), "--samples", "1")
    assert code == 0
    assert "40 documents, " in out
    assert "1.0 bytes per token" in out
    assert out.count("sample ") == 1


def test_a_saved_data_set_is_read_whole_or_a_split_of_it(tmp_path: Path) -> None:
    rows = {name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(5)]}) for name in ("train", "test")}
    rows["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "both")

    def read(**shard: str) -> list[str]:
        return [document.text for document in documents(Shard.model_validate(shard))]

    train, test = ([f"{name} {i}" for i in range(5)] for name in ("train", "test"))
    assert read(source=str(tmp_path / "one")) == read(source=f"hf:{tmp_path / 'one'}") == train
    assert read(source=str(tmp_path / "both")) == [*test, *train]
    assert read(source=f"hf:{tmp_path / 'both'}", split="test") == test
    with pytest.raises(InputError, match="split: got 'tests', expected one of test, train; did you mean 'test'"):
        read(source=f"hf:{tmp_path / 'both'}", split="tests")


def test_what_lies_beside_a_saved_data_set_is_left_out_and_another_split_is_no_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]}, split=datasets.Split.TEST)
    rows.save_to_disk(folder)
    (arrow,) = folder.glob("*.arrow")
    for name in ("README.md", "notes.txt", "load.py", "rows.jsonl", "rows.parquet", "none"):
        (folder / name).write_text("{}")
    (folder / "cache-0.arrow").write_bytes(arrow.read_bytes())
    shard = Shard(source=f"hf:{folder}")
    reader = reader_of(shard)
    assert [document.text for document in documents(shard, reader)] == ["a", "b"]
    assert sum(one.count for one in reader.account().left_out) == 9  # two more describe it
    assert [one.text for one in documents(Shard(source=f"hf:{folder}", split="test"))] == ["a", "b"]
    with pytest.raises(InputError, match="split is 'validation', but the folder holds the split 'test' alone"):
        list(documents(Shard(source=f"hf:{folder}", split="validation")))
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "plain")
    with pytest.raises(InputError, match="split is 'test', but the folder holds one data set without splits"):
        list(documents(Shard(source=f"hf:{tmp_path / 'plain'}", split="test")))
