"""Models made of layers of others: the host's own are the host, blends route, what is saved comes back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ids, saved, write_tokenizer

from foreign_models import llama
from morphogen.errors import InputError
from morphogen.fusion.fused import EXPERIMENT, WEIGHTS, FusionModel
from morphogen.fusion.stacking import model_names
from morphogen.parts.foreign.donors.opened import donor_of
from morphogen.reading import read_experiment
from morphogen.store.places import LAYOUT

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two tiny models of different width and architecture, the first with a tokenizer."""
    place = tmp_path_factory.mktemp("models")
    for name, model in (("a", "llama"), ("b", "gpt2")):
        saved(model, place / name)
    write_tokenizer(place / "a")
    return {name: str(place / name) for name in "ab"}


def mixed(folders: dict[str, str], router: str = "token", **options: Any) -> FusionModel:
    return FusionModel(folders, [("a", 0), [("a", 1), ("b", 0), ("b", 1)]], router=router, **options)


def test_all_layers_of_the_host_in_order_are_the_host(folders: dict[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folders["a"]).eval()
    fused = FusionModel([folders["a"]], [("a", 0), [("a", 1)]]).eval()
    with torch.no_grad():
        assert torch.allclose(fused(ids()), theirs(ids()).logits, atol=1e-4)
        layers = [layer for _, branch in fused._branches() for layer in branch.layers]
        assert [layer.executed for layer in layers] == [1, 1]
        written = fused.generate(ids()[:, :5], 12, temperature=0.0)
        assert torch.equal(
            written, theirs.generate(ids()[:, :5], max_new_tokens=12, do_sample=False, eos_token_id=None)
        )


@pytest.mark.parametrize("router", ["simple", "token"])
def test_the_next_token_by_cache_is_that_of_the_whole_and_routes_sum_to_one(
    router: str, folders: dict[str, str], tmp_path: Path
) -> None:
    fused = mixed(folders, router, top_k=2).eval()
    with torch.no_grad():
        whole, cache = fused(ids()), {}
        parts = torch.cat([fused.model.extend(ids()[:, t : t + 1], cache) for t in range(ids().shape[1])], 1)
        assert torch.allclose(whole, parts, atol=1e-4)
        changed = ids().clone()
        changed[:, -1] = (changed[:, -1] + 1) % 300
        assert torch.allclose(fused(changed)[:, :-1], whole[:, :-1], atol=1e-6)
    (routed,) = fused.routing(ids())
    assert routed.layers == ("a:1", "b:0", "b:1")
    assert sum(routed.share) == pytest.approx(1.0)
    assert routed.entropy > 0
    fused.picture(tmp_path / "routes.png", "some text")
    assert (tmp_path / "routes.png").read_bytes().startswith(PNG)
    assert isinstance(fused.generate("some", 5), str)


def test_what_is_saved_comes_back_and_only_what_was_learned_lies_in_it(folders: dict[str, str], tmp_path: Path) -> None:
    fused = mixed(folders).eval()
    with torch.no_grad():
        next(branch for _, branch in fused._branches()).write[0].weight.mul_(1.5)
    place = fused.save(tmp_path / "fused", "some text")
    (told,) = json.loads((place / "routing.json").read_text())
    assert told["layers"] == ["a:1", "b:0", "b:1"]
    assert (place / "routing.png").read_bytes().startswith(PNG)
    again = FusionModel.load(place).eval()
    with torch.no_grad():
        assert torch.equal(again(ids()), fused(ids()))
    assert again.models == fused.models
    assert again.tokenizer.digest == fused.tokenizer.digest
    assert again.blueprint == fused.blueprint
    donors = sum(p.numel() for _, branch in fused._branches() for p in branch.layers.parameters())
    assert (place / WEIGHTS).stat().st_size < 4 * (sum(p.numel() for p in fused.parameters()) - donors) + 60_000
    experiment = read_experiment(str(place / EXPERIMENT))
    assert experiment.model == fused.blueprint
    told = json.loads((place / LAYOUT).read_text())
    (place / LAYOUT).write_text(json.dumps({**told, "layers": [[["a", 0]], [["a", 1], ["b", 1], ["b", 0]]]}))
    with pytest.raises(InputError, match=r"layout.json: its layers is not that of model.safetensors"):
        FusionModel.load(place)
    (place / LAYOUT).write_text("[")
    with pytest.raises(InputError, match=r"layout.json: not JSON"):
        FusionModel.load(place)
    with pytest.raises(InputError, match="no such checkpoint"):
        FusionModel.load(tmp_path / "nowhere")


def test_a_saved_model_is_moved_together_with_the_models_it_is_of(folders: dict[str, str], tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(folders[name], tmp_path / "here" / "models" / name)
    here = {name: str(tmp_path / "here" / "models" / name) for name in "ab"}
    fused = mixed(here).eval()
    for kept in (fused.save(tmp_path / "here" / "fused"), fused.save(tmp_path / "here")):
        assert not any(str(tmp_path) in each for each in json.loads((kept / LAYOUT).read_text())["models"].values())
    (tmp_path / "here").rename(tmp_path / "there")
    moved = {name: str(tmp_path / "there" / "models" / name) for name in "ab"}
    for kept in (tmp_path / "there" / "fused", tmp_path / "there"):
        again = FusionModel.load(kept).eval()
        with torch.no_grad():
            assert torch.equal(again(ids()), fused(ids()))
        assert (again.models, again.tokenizer_name) == (moved, moved["a"])
        experiment = read_experiment(str(kept / EXPERIMENT))
        assert (experiment.model, experiment.data.tokenizer) == (again.blueprint, moved["a"])
    # one whose layout says where they are from the root, as it was written once
    layout = json.loads((kept / LAYOUT).read_text())
    (kept / LAYOUT).write_text(json.dumps({**layout, "models": here}))
    assert FusionModel.load(kept).models == moved


def test_building_and_saving_reads_a_layer_once(folders: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(folders["b"], tmp_path / "b")
    models = {"a": folders["a"], "b": str(tmp_path / "b")}
    fused = FusionModel(models, [[("b", 0), ("b", 1)]])
    kept = fused.save(tmp_path / "fused")
    layers = sum(4 * p.numel() for _, branch in fused._branches() for p in branch.layers.parameters())
    assert donor_of(models["b"]).bytes_read == layers
    FusionModel.load(kept)
    assert donor_of(models["b"]).bytes_read == 2 * layers


def test_models_without_names_have_each_its_own() -> None:
    assert model_names(["p/x", "q/x", "r/x_0"]) == ["x_1", "x_2", "x_0"]
    assert model_names(["x_1", "p/x", "q/x"]) == ["x_1", "x_2", "x_3"]
    assert model_names(["p/x", "q/x", "y"]) == ["x_0", "x_1", "y"]


def test_widths_may_differ_and_bottlenecks_start_without_effect(folders: dict[str, str], tmp_path: Path) -> None:
    saved("mistral", tmp_path / "m")
    fused = FusionModel({**folders, "m": str(tmp_path / "m")}, [[("m", 0), ("b", 1)]], adapter="bottleneck").eval()
    with torch.no_grad():
        stem = fused.model._logits(fused.model.norm(fused.model.emb(ids())))
        assert torch.equal(fused(ids()), stem)
    frozen = {name for name, p in fused.named_parameters() if not p.requires_grad}
    assert {"model.emb.weight", "model.head.weight"} <= frozen
    loose = FusionModel(folders, [("b", 0)], freeze_embedding=False, freeze_head=False, freeze=False)
    assert all(p.requires_grad for n, p in loose.named_parameters() if not n.endswith("eps"))


def test_lanes_of_several_widths_in_order_are_each_written_back_to_the_stream(
    folders: dict[str, str], tmp_path: Path
) -> None:
    llama(tmp_path / "wide", dim=48)
    models = {**folders, "wide": str(tmp_path / "wide")}
    fused = FusionModel(models, [[("wide", 0), ("a", 1), ("b", 0)]], adapter="linear").eval()
    assert fused(ids()).shape[:2] == ids().shape
    branch = fused._branches()[0][1]
    way_ED = torch.eye(32)
    for n, width in enumerate((48, 32, 32)):
        way_ED = branch.read[n].weight @ way_ED
        assert torch.allclose(branch.write[n].weight, way_ED.t() * width**0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": [("c", 0)]}, r"layers\[0\]: model"),
        ({"layers": [("a", 7)]}, "7"),
        ({"layers": []}, "layers: got none"),
        ({"layers": [[("a", 0), "b"]]}, r"layers\[0\]: got 'b', expected a pair"),
        ({"layers": ["a"]}, r"layers\[0\]: got 'a', expected layers"),
        ({"layers": [7]}, r"layers\[0\]: got 7, expected layers"),
        ({"layers": [[("a", 0, 1)]]}, r"layers\[0\]: got \('a', 0, 1\), expected a pair"),
        ({"host": "c"}, "host"),
        ({"host": "b"}, "has no tokenizer"),
        ({"models": "a"}, "models: got 'a', expected a list"),
        ({"models": None}, "models: got None, expected a list"),
        ({"layers": None}, "layers: got None, expected a list"),
        ({"layers": [("a", True)]}, r"layers\[0\]: got 'a', expected a pair"),
        ({"layers": [[("a", 0), ("b", -1)]]}, r"^layers\[0\]\[1\]: Input should be greater than or equal to 0"),
        ({"layers": [("a", 0), []]}, r"^layers\[1\]: .*at least 1 item"),
        ({"router": "token", "top_k": 3}, r"^layers\[0\]: top_k is 3, but there are 2 experts"),
        ({"adapter": None}, "^adapter: Input should be"),
        ({"models": {}}, "models: got none"),
        ({"models": {"a": "nowhere/at/all"}}, "nowhere/at/all: no such folder"),
        ({"router": "tokens"}, "router"),
        ({"bottlenecks": 3}, "^bottlenecks: Extra inputs"),
    ],
)
def test_what_cannot_be_is_told(change: dict[str, object], said: str, folders: dict[str, str]) -> None:
    given = {"models": folders, "layers": [[("a", 0), ("b", 1)]], **change}
    with pytest.raises(InputError, match=said):
        FusionModel(**given)  # type: ignore[arg-type]


def test_ids_that_are_none_are_told(folders: dict[str, str]) -> None:
    fused = FusionModel(folders, [[("a", 0), ("b", 1)]], router="simple")
    for given, said in ((ids()[:, :0], "at least one"), (ids()[0], "expected"), (ids() + 10**6, "routing: got tokens")):
        with pytest.raises(InputError, match=said):
            fused.routing(given)


@pytest.mark.slow
def test_a_saved_model_is_trained_from_its_yaml(folders: dict[str, str], tmp_path: Path) -> None:
    from morphogen.beginnings import asked
    from morphogen.trainings import train
    from tiny import write_corpus

    place = mixed(folders).save(tmp_path / "fused")
    corpus = write_corpus(tmp_path / "corpus", documents=100)
    given = asked(data=str(corpus), seq_len=16, batch_size=2)
    train(place / EXPERIMENT, tmp_path / "trained", steps=4, asked=given)
    trained = FusionModel.load(tmp_path / "trained")
    before, after = FusionModel.load(place).state_dict(), trained.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(
        ".read." in n or ".write." in n or ".router." in n or ".norm" in n for n in moved - {"model.norm.weight"}
    )
