"""What Python callers hand over by mistake is told in one line; nothing is begun, and nothing silently passed over."""

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import morphogen as mg
from morphogen.blueprint.schema import Blueprint
from morphogen.execution import Execution
from morphogen.experiment import Experiment
from morphogen.network import LanguageModel

BLUEPRINT = Blueprint.model_validate(
    {
        "emb": {"dim": 16, "vocab": 37},
        "blocks": [
            {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 16}},
            {"ffn": {"kind": "moe", "hidden": 8, "n_experts": 4}},
        ],
    }
)
EXPERIMENT = Experiment.model_validate({"model": BLUEPRINT, "data": {"tokenizer": "bytes"}})
MODEL = mg.build(BLUEPRINT)
STATE = MODEL.state_dict()
CHILD, EDIT = mg.mutate(BLUEPRINT, "widen_ffn", seed=1)
PAIR = (BLUEPRINT, STATE)
PROMPT = torch.zeros(1, 2, dtype=torch.int64)

Call = Callable[[Any], object]
#: What is asked of something that may be anything.
SEEDED: dict[str, Call] = {
    "build": lambda seed: mg.build(BLUEPRINT, seed=seed),
    "mutate": lambda seed: mg.mutate(BLUEPRINT, "widen_ffn", seed=seed),
    "inherit": lambda seed: mg.inherit(CHILD, [PAIR], seed=seed),
    "grow": lambda seed: MODEL.grow_layers(1, seed=seed),
    "evolve": lambda seed: mg.evolve(EXPERIMENT, "/nowhere/at/all", seed=seed),
}
OF_A_BLUEPRINT: dict[str, Call] = {
    "build": mg.build,
    "operators": mg.operators,
    "mutate": lambda given: mg.mutate(given, "widen_ffn", seed=0),
    "child": lambda given: mg.inherit(given, [PAIR]),
    "parent": lambda given: mg.inherit(CHILD, [(given, STATE)]),
}
OF_A_PATH: dict[str, Call] = {
    "load": mg.load,
    "evolve": lambda given: mg.evolve(EXPERIMENT, given),
    "keep": lambda given: mg.Keep(checkpoint_dir=given),
}


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True], ids=repr)
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_is_a_whole_number_of_at_least_0(name: str, seed: object) -> None:
    with pytest.raises(mg.MorphogenError, match=f"seed: got {seed!r}, expected"):
        SEEDED[name](seed)


def test_a_seed_may_be_numpys() -> None:
    assert mg.mutate(BLUEPRINT, "widen_ffn", seed=np.int64(1)) == (CHILD, EDIT)
    assert torch.equal(mg.build(BLUEPRINT, seed=np.int64(0)).emb.weight, MODEL.emb.weight)


@pytest.mark.parametrize("given", [EXPERIMENT, BLUEPRINT.model_dump(), "a.yaml", None], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", OF_A_BLUEPRINT)
def test_what_is_no_blueprint_is_told(name: str, given: object) -> None:
    with pytest.raises(mg.MorphogenError, match=r"got .*, expected a Blueprint; that of an experiment is `experiment"):
        OF_A_BLUEPRINT[name](given)


@pytest.mark.parametrize("given", [3, b"x", "", "a\0b"], ids=repr)
@pytest.mark.parametrize("name", OF_A_PATH)
def test_what_is_no_path_is_told(name: str, given: object) -> None:
    with pytest.raises(mg.MorphogenError, match=r"got .*, expected a path"):
        OF_A_PATH[name](given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mg.build(BLUEPRINT, vocab=2.5), "model.emb.vocab: got 2.5, expected a whole number"),
        (lambda: mg.build(BLUEPRINT, vocab=True), "model.emb.vocab: got True, expected a whole number"),
        (lambda: mg.inherit(CHILD, [PAIR] * 3), "parents: got 3, expected none, one or two"),
        (lambda: mg.inherit(CHILD, PAIR), r"parents\[0\]: expected a pair of a blueprint and its state dict"),
        (lambda: mg.inherit(CHILD, MODEL), "parents: got a LanguageModel, expected a list or a tuple"),
        (lambda: mg.inherit(CHILD, [MODEL]), r"parents\[0\]: expected a pair"),
        (lambda: mg.inherit(CHILD, [(BLUEPRINT, MODEL)]), r"got a LanguageModel, .* `model.state_dict\(\)`"),
        (lambda: mg.inherit(CHILD, [(BLUEPRINT, {k: v.numpy() for k, v in STATE.items()})]), "got a ndarray, expected"),
        (lambda: mg.inherit(CHILD, [(BLUEPRINT, {k: v.int() for k, v in STATE.items()})]), "torch.int32, expected one"),
        (lambda: mg.inherit(CHILD, [(BLUEPRINT, {k: v.to("meta") for k, v in STATE.items()})]), "on the meta device"),
        (lambda: mg.inherit(CHILD, [PAIR], edits=EDIT), "edits: got an Edit, expected a list or a tuple; one alone"),
        (lambda: mg.inherit(CHILD, [PAIR], edits=["widen_ffn"]), r"edits\[0\]: got 'widen_ffn', expected an Edit"),
        (lambda: mg.inherit(CHILD, [PAIR], edits=[EDIT, EDIT]), "edit widen_ffn does not fit blueprint"),
        (lambda: mg.inherit(BLUEPRINT, [PAIR], edits=[EDIT]), "do not lead to the blueprint"),
        (lambda: mg.inherit(CHILD, [], edits=[EDIT]), "parents: got 0, expected one or two"),
        (lambda: mg.inherit(CHILD, [PAIR], names=()), "names: got 0, expected one for each of 1 parents"),
        (lambda: mg.inherit(CHILD, [PAIR], sources={"b": 0}), "sources: block: got 'b', expected one of b0, b1"),
        (lambda: mg.inherit(CHILD, [PAIR], sources={"b0": 1}), "sources.b0: got 1, expected the position of one of 1"),
        (lambda: mg.inherit(CHILD, [PAIR], sources={"b0": -1}), "sources.b0: got -1, expected at least 0"),
        (lambda: mg.grow(torch.nn.Sequential(MODEL), {"action": "deepen"}), "model: got a Sequential, expected a Lan"),
        (lambda: mg.grow(MODEL, "deepen"), "action: got 'deepen', expected an Action or a Mapping"),
        (lambda: mg.grow(MODEL, {}), "grow: action: got {}, expected a mapping with 'action'"),
        (lambda: mg.grow(MODEL, {"action": "deepn"}), "grow: action: got 'deepn', .*; did you mean 'deepen'"),
        (lambda: mg.grow(MODEL, {"action": "deepen", "layer": 1}), "grow: layer: unknown field, did you mean 'layers'"),
        (lambda: MODEL.widen("head"), "grow: target: got 'head', expected one of .*; did you mean 'heads'"),
        (lambda: MODEL.split_expert("b1", 1.5), "expert of block b1: got 1.5, expected a whole number"),
        (lambda: MODEL.generate([[1]], 2), "generate: prompt: got a list, expected a Tensor"),
        (lambda: MODEL.generate(PROMPT.float(), 2), "a prompt of torch.float32"),
        (lambda: MODEL.generate(PROMPT[:0], 2), r"a prompt of shape \(0, 2\)"),
        (lambda: MODEL.generate(PROMPT, 1.5), "tokens: got 1.5, expected a whole number"),
        (lambda: MODEL.generate(PROMPT, 2, top_k=1.5), "top_k: got 1.5, expected a whole number"),
        (lambda: MODEL.generate(PROMPT, 2, seed="a"), "seed: got 'a', expected a whole number"),
        (lambda: MODEL.generate(PROMPT, 2, seed=1 << 64), "at most 64 bits"),
        (lambda: mg.Keep(disk_budget="3G"), "disk_budget: got '3G', expected a whole number"),
        (lambda: mg.Keep(disk_budget=-1), "disk_budget: got -1, expected at least 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_argument_that_cannot_be_is_told(call: Callable[[], object], message: str) -> None:
    with pytest.raises(mg.MorphogenError, match=message):
        call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"experiment": BLUEPRINT}, "experiment: got a Blueprint, expected an Experiment; `load` reads one"),
        ({"experiment": "a.yaml"}, "experiment: got 'a.yaml', expected an Experiment"),
        ({"generations": -1}, "generations: got -1, expected at least 0"),
        ({"generations": 1.5}, "generations: got 1.5, expected a whole number"),
        ({"device": None}, "device: got 'None', expected one of"),
        ({"device": torch.device("meta")}, "device: got 'meta', expected one of"),
        ({"execution": {"workers": 2}}, "execution: got a dict, expected an Execution"),
        ({"keep": None}, "keep: got None, expected a Keep"),
        ({"observer": None}, "observer: got None, expected a function"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_with_an_argument_that_cannot_be_is_not_begun(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(mg.MorphogenError, match=message):
        mg.evolve(**{"experiment": EXPERIMENT, "out": tmp_path / "run", **given})
    assert not (tmp_path / "run").exists()


def test_places_that_are_kept_may_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mg.Keep(frontier_out="~/f.json", lineage_out="l.json") == mg.Keep(
        frontier_out=tmp_path / "f.json", lineage_out=Path("l.json")
    )


def test_every_public_name_is_pickled_and_knows_its_arguments() -> None:
    import morphogen.inherit  # noqa: F401  (which stands where the function of that name does, from then on)

    for name in sorted({*mg.__all__} - {"FusionModel"}):  # which brings transformers
        found = getattr(mg, name)
        assert pickle.loads(pickle.dumps(found)) is found
        if not isinstance(found, type):
            assert {"args", "kwargs"}.isdisjoint(inspect.signature(found).parameters)
    assert isinstance(pickle.loads(pickle.dumps(MODEL)), LanguageModel)
    assert pickle.loads(pickle.dumps(Execution())) == Execution()
