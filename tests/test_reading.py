"""Paths mean the same from anywhere: `~`, the file's own folder, names that are no paths; torch is not needed."""

import os
from pathlib import Path

import pytest

from morphogen.errors import InputError
from morphogen.experiment import Experiment, Shard
from morphogen.paths import absolute_path
from morphogen.reading import local_paths, located, moved, placed, read_experiment

TEXT = """\
model:
  emb: {dim: 8}
  blocks: [{ffn: {kind: dense, hidden: 8}}]
train: {init_checkpoint: start.safetensors}
data:
  tokenizer: TOKENIZER
  shards:
    - {source: a.txt, cache_path: ../kept}
    - {source: ~/b.txt}
    - {source: 'hf:set:de'}
    - {source: 'hf:owner/set'}
    - {source: stdlib-code}
    - {source: 'probe:mqar'}
  eval_shards: [{source: sub/c.txt}, {source: /d.txt}]
  healing_shards: [{source: ./e.txt}]
evolution: {templates: t.yaml}
"""


def written(folder: Path, tokenizer: str = "bytes") -> Path:
    (folder / "set").mkdir(parents=True, exist_ok=True)
    path = folder / "c.yaml"
    path.write_text(TEXT.replace("TOKENIZER", tokenizer))
    return path


@pytest.mark.parametrize("there", [True, False])
def test_every_path_of_a_file_is_meant_from_its_folder(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "deep")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path / "deep" if there else tmp_path)
    experiment = read_experiment(os.path.relpath(file))
    here = tmp_path.resolve()
    data = experiment.data
    assert [shard.source for shard in data.shards] == [
        f"{here}/deep/a.txt",
        "/home/me/b.txt",
        f"hf:{here}/deep/set:de",
        "hf:owner/set",
        "stdlib-code",
        "probe:mqar",
    ]
    assert data.shards[0].cache_path == f"{here}/kept"
    assert [shard.source for shard in (*data.eval_shards, *data.healing_shards)] == [
        f"{here}/deep/sub/c.txt",
        "/d.txt",
        f"{here}/deep/e.txt",
    ]
    assert experiment.train.init_checkpoint == f"{here}/deep/start.safetensors"
    assert experiment.evolution.templates == f"{here}/deep/t.yaml"
    assert located(experiment, Path("/elsewhere")) == experiment


def test_figures_are_called_after_sources_as_they_were_written(tmp_path: Path) -> None:
    shards = read_experiment(written(tmp_path)).data.shards
    assert [shard.name for shard in shards] == ["a_txt", "b_txt", "set_de", "owner_set", "stdlib_code", "probe_mqar"]
    again = [Shard.model_validate(shard.model_dump(mode="json")) for shard in shards]
    assert [shard.name for shard in again] == [shard.name for shard in shards]
    assert "name" not in Shard(source="a.txt").model_dump()
    assert Shard(source="a.txt", name="mine").model_dump()["name"] == "mine"
    with pytest.raises(ValueError, match="expected letters, digits"):
        Shard(source="a.txt", name="a b")


@pytest.mark.parametrize(
    ("tokenizer", "found"),
    [
        ("bytes", "bytes"),
        ("gpt2", "gpt2"),
        ("owner/name", "owner/name"),
        ("set", "HERE/set"),
        ("my.json", "HERE/my.json"),
        ("./gone", "HERE/gone"),
        ("~/tok", "/home/me/tok"),
    ],
)
def test_a_tokenizer_is_a_path_where_it_can_be_one(
    tokenizer: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    experiment = read_experiment(written(tmp_path, tokenizer))
    assert experiment.data.tokenizer == found.replace("HERE", str(tmp_path.resolve()))


def test_from_python_relative_paths_are_meant_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"emb": {"dim": 8}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}
    experiment = Experiment.model_validate({"model": model, "data": {"shards": [{"source": "a.txt"}]}})
    found = located(experiment)
    assert local_paths(found) == {("data", "shards", 0, "source"): str(tmp_path.resolve() / "a.txt")}
    elsewhere = moved(found, {str(tmp_path.resolve() / "a.txt"): "/b/c.txt"}).data.shards[0]
    assert (elsewhere.source, elsewhere.name) == ("/b/c.txt", "a_txt")


def test_a_path_that_means_nothing_is_named_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(TEXT.replace("TOKENIZER", "bytes").replace("~/b.txt", "~nobody-at-all/b.txt"))
    with pytest.raises(InputError, match=r"c\.yaml:9:8 data\.shards\[1\]\.source: .*nobody has that home"):
        read_experiment(file)
    for text in ("", " ", "a\0b"):
        with pytest.raises(InputError, match="expected a path"):
            absolute_path(text, "x")


def test_what_leads_up_from_a_linked_folder_leads_up_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    assert absolute_path("../a.txt", "x", tmp_path / "link") == tmp_path.resolve() / "real" / "a.txt"
    assert absolute_path("/a/../b", "x") == Path("/b")


def test_a_mistake_is_told_with_its_place_in_a_file_whose_name_has_spaces(tmp_path: Path) -> None:
    file = tmp_path / "a b.yaml"
    file.write_text("model:\n  emb: {dim: 8}\n")
    with pytest.raises(InputError) as error, placed(file):
        raise InputError("model.emb.dim: got 8")
    assert str(error.value) == f"{file}:2:9 model.emb.dim: got 8"
