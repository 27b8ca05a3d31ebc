"""Changed copies of frozen data: what is invalid or no change gives None, what does not exist is a mistake."""

import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.experiment import Train
from morphogen.parts.attention.attention import Attention
from morphogen.parts.attention.kv_policy import KVPolicy
from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.ffn.mlp import MLP

BLUEPRINT = Blueprint.model_validate({"emb": {"dim": 8}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]})


@pytest.mark.parametrize(
    ("data", "field", "nearest"),
    [
        (MLP(hidden=8), "hiden", "MLP.evolve: got 'hiden', .*did you mean 'hidden'"),
        (Attention(kind="MHA", heads=1, head_dim=8), "sparsety", "Attention.evolve: .*did you mean 'sparsity'"),
        (KVPolicy(), "windows", "KVPolicy.evolve: .*did you mean 'window'"),
        (Train(), "learning_rate", "Train.evolve: got 'learning_rate'"),
        (BLUEPRINT, "block", "Blueprint.evolve: .*did you mean 'blocks'"),
        (BLUEPRINT.blocks[0], "extra", "Block.evolve: .*did you mean 'extras'"),
    ],
)
def test_a_field_that_does_not_exist_is_told_with_its_class_and_the_nearest_name(
    data: Frozen, field: str, nearest: str
) -> None:
    with pytest.raises(TypeError, match=nearest):
        data.evolve(**{field: 1})


def test_a_copy_is_validated_and_never_the_same() -> None:
    part = MLP(hidden=8)
    assert part.evolve(hidden=16) == MLP(hidden=16)
    assert part.evolve(hidden=8) is None
    assert part.evolve(hidden=0) is None
    assert part.evolve(hidden=16, activation="no such") is None


def test_another_name_of_a_field_is_that_field() -> None:
    part = Attention(kind="MHA", heads=1, head_dim=8, sparsity="sliding", sliding_window=64)
    assert part.evolve(sw=32) == part.evolve(sliding_window=32)
