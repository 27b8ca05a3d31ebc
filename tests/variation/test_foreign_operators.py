"""Operators on layers of other models: offered only with donors, exact as declared; and files that name such layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreign_models import LAYERS, blueprint, home
from morphogen.blueprint.diff import apply, digest
from morphogen.blueprint.schema import Blueprint
from morphogen.checks import validated
from morphogen.errors import InputError
from morphogen.experiment import Evolution
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.foreign.donors.opened import cost_of
from morphogen.parts.foreign.foreign import Foreign
from morphogen.reading import read_experiment
from morphogen.testing.models import stirred
from morphogen.testing.operators import changes_and_is_exact_as_declared, jump, new_weights_train
from morphogen.variation.act import Surroundings, apply_operator
from morphogen.variation.foreign import NAMES
from morphogen.variation.policy import Policy

__all__ = ["home"]


def test_without_donors_nothing_is_offered_and_with_them_all_are(home: Path) -> None:
    plain = Policy.of(Evolution(), 32, blueprint())
    assert not set(NAMES) & set(plain.weights)
    given = Evolution(donors=(str(home / "a"),), mutation_weights={"drop_foreign": 0.0})
    offered = Policy.of(given, 32, blueprint()).weights
    assert set(offered) - set(plain.weights) == set(NAMES) - {"drop_foreign"}
    assert set(Policy.of(Evolution(), 32, blueprint(home)).weights) - set(plain.weights) == set(NAMES)
    assert all(name in OPERATORS for name in NAMES)
    assert apply_operator(blueprint(), "insert_foreign", np.random.default_rng(0)) is None


def test_layers_of_every_donor_are_put_in(home: Path) -> None:
    around = Surroundings(donors=(str(home / "a"), str(home / "b")))
    seen = set()
    for seed in range(30):
        made = apply_operator(blueprint(), "insert_foreign", np.random.default_rng(seed), around)
        assert made is not None
        child, edit = made
        assert apply(blueprint(), edit.changes) == child
        assert edit.preserves
        assert plan(child, [blueprint()]).exact
        new = child.blocks[0].extras[0]
        assert isinstance(new, Foreign)
        layers = [expert.layer for expert in new.experts]
        assert layers == list(range(layers[0], layers[0] + len(layers)))
        assert layers[-1] < LAYERS
        seen |= {(Path(expert.model).name, expert.layer) for expert in new.experts}
    assert len(seen) == 2 * LAYERS
    assert apply_operator(child, "insert_foreign", np.random.default_rng(0), around) is None


CASES: dict[str, dict[str, Any]] = {
    "change_foreign_source": {"router": "token", "top_k": 2},
    "change_foreign_adapter": {"experts": "b1"},
    "add_foreign_expert": {"experts": "a0 a2", "router": "token", "top_k": 2},
    "drop_foreign_expert": {"experts": "a0 b1 a2", "router": "simple"},
    "grow_foreign_adapter": {"adapter": "bottleneck", "bottleneck": 3},
    "change_foreign_router": {"experts": "a0 b1"},
    "unfreeze_foreign": {"router": "simple", "pooling": "attention"},
    "drop_foreign": {"lora": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_exact_as_it_says(home: Path, name: str) -> None:
    for seed in range(4):
        changes_and_is_exact_as_declared(name, blueprint(home, **CASES[name]), seed)
    made = apply_operator(blueprint(home, **CASES[name]), name, np.random.default_rng(0))
    assert made is not None
    if not made[1].preserves:
        assert jump(blueprint(home, **CASES[name]), made[1], torch.float32)[0] > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grow_foreign_adapter", "unfreeze_foreign"])
def test_what_an_operator_adds_trains(home: Path, name: str) -> None:
    for seed in range(4):
        new_weights_train(name, blueprint(home, **CASES[name]), seed)


def test_a_layer_is_changed_for_one_that_is_not_there_yet(home: Path) -> None:
    parent = blueprint(home, experts="a0 a1")
    for seed in range(8):
        made = apply_operator(parent, "change_foreign_source", np.random.default_rng(seed))
        assert made is not None
        new = made[0].blocks[0].extras[0]
        assert isinstance(new, Foreign)
        assert len({expert.layer for expert in new.experts}) == 2
        assert digest(made[0]) != digest(parent)


def test_lanes_are_carried_wherever_they_stand_with_their_rows_of_the_router(home: Path) -> None:
    """Another layer in front, one gone from the middle: what stays is bit for bit what it was."""
    fields = {"router": "token", "top_k": 2, "lora": 2, "adapter": "bottleneck"}
    parent = blueprint(home, experts="a0 b1 a2", **fields)
    state = stirred(parent, dtype=torch.float32)
    prefix = "blocks.0.extras.0."
    for experts, stays in (("a0 a2", {0: 0, 1: 2}), ("a1 a2 b1 a0", {1: 2, 2: 1, 3: 0}), ("a2 b1 a0", {0: 2, 2: 0})):
        child = blueprint(home, experts=experts, **fields)
        made, _ = inherit(child, [(parent, state)])
        for name, tensor in made.items():
            group, _, rest = name.removeprefix(prefix).partition(".")
            number, _, own = rest.partition(".")
            if name.startswith(prefix) and number.isdigit() and int(number) in stays:
                assert torch.equal(tensor, state[f"{prefix}{group}.{stays[int(number)]}.{own}"]), name
        for mine, its in stays.items():
            assert torch.equal(made[f"{prefix}router.weight"][mine], state[f"{prefix}router.weight"][its])


# ------------------------------------------------------------------------------------------------------ experiments

TEXT = """\
model:
  emb: {dim: 16}
  blocks:
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      extras:
        - kind: foreign
          experts:
            - {model: a, layer: 1}
            - {model: b, layer: 0}
data: {tokenizer: bytes, seq_len: 16, batch_size: 4, shards: [{source: text.txt}]}
evolution: {generations: 0, population: 1, donors: [a]}
"""


def test_layers_run_on_more_tokens_than_their_model_has_learned_places_for(tmp_path: Path) -> None:
    """Learned places are added before the first layer."""
    import transformers

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 32}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "c")
    (tmp_path / "text.txt").write_text("some text")
    file = Path(written(tmp_path, "            - {model: b, layer: 0}\n", ""))
    file.write_text(file.read_text().replace("model: a, layer: 1", "model: c, layer: 0").replace("[a]", "[c]"))
    assert validated(str(file)).parameters
    cost = cost_of(str(tmp_path / "c"), 0, 16)
    assert cost.flops > 0


@pytest.fixture
def place(home: Path) -> Path:
    (home / "text.txt").write_text("some text")
    (home / "empty").mkdir(exist_ok=True)
    return home


def written(place: Path, old: str = "", new: str = "") -> str:
    assert old in TEXT
    file = place / "f.yaml"
    file.write_text(TEXT.replace(old, new, 1) if old else TEXT)
    return str(file)


def test_models_are_meant_from_the_folder_of_the_file(place: Path) -> None:
    experiment = read_experiment(written(place))
    extra = experiment.model.blocks[0].extras[0]
    assert isinstance(extra, Foreign)
    assert [expert.model for expert in extra.experts] == [str(place / "a"), str(place / "b")]
    assert experiment.evolution.donors == (str(place / "a"),)
    assert validated(written(place)).parameters


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{model: b,", "{model: ./bb,", "f.yaml:9:16 model.blocks[0].extras[0].experts[1].model: "),
        ("{model: b,", "{model: ./bb,", "no such folder"),
        ("{model: b,", "{model: ./bb,", "; did you mean"),
        ("layer: 0", "layer: 9", "f.yaml:9:26 model.blocks[0].extras[0].experts[1].layer: got 9, but "),
        ("layer: 0", "layer: 9", "has 3 layers, expected 0 to 2"),
        ("donors: [a]", "donors: [a, ./empty]", "f.yaml:11:56 evolution.donors[1]: "),
        ("donors: [a]", "donors: [a, ./empty]", "config.json: no such file"),
    ],
)
def test_a_layer_that_is_not_there_is_told_with_its_place(place: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        validated(written(place, old, new))
    assert len(str(error.value).splitlines()) == 1
    assert said in str(error.value)


def test_a_field_that_nothing_reads_is_told(place: Path) -> None:
    file = written(place, "- kind: foreign", "- kind: foreign\n          top_k: 2")
    assert any("top_k: is 2, but has no effect with router 'none'" in note for note in validated(file).notes)


def test_blueprints_with_them_are_replayed(home: Path) -> None:
    child = blueprint(home, router="token", lora=2)
    assert Blueprint.model_validate(child.to_json()) == child
