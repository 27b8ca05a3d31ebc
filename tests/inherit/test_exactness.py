"""A plan never calls itself exact where a part became another that it has nothing in common with."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.inherit.plan import plan
from morphogen.parts.attention.attention import Attention
from morphogen.parts.contract.part import REGISTRY, Part
from morphogen.parts.ffn.mlp import MLP
from strategies import PARTS

PAIRS = [
    (slot, old, new)
    for (slot, old), (other, new) in itertools.permutations(PARTS, 2)
    if slot == other and slot in ("attn", "ssm", "ffn")
]


def holding(part: Part) -> Blueprint:
    """The part, and a dense layer in a block of its own."""
    blocks = [{"id": "b0", part.slot: part}, {"id": "b1", "ffn": MLP(hidden=8)}]
    return Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": blocks})


@pytest.mark.parametrize(("slot", "old", "new"), PAIRS)
@settings(max_examples=3)
@given(data=st.data())
def test_a_change_of_kind_without_anything_in_common_is_lossy(
    slot: str, old: str, new: str, data: st.DataObject
) -> None:
    parent, child = (holding(data.draw(PARTS[slot, kind]())) for kind in (old, new))
    classes = {REGISTRY[slot, old], REGISTRY[slot, new]}
    with pytest.MonkeyPatch.context() as patched:
        for cls in classes:
            patched.setattr(cls, "align", lambda self, parent, ctx, parent_ctx: None)
        drawn = plan(child, [parent])
    assert not drawn.exact
    assert any(f"{old} became {new}, nothing carried" in note for note in drawn.notes)
    assert all(t.source is None for t in drawn.tensors if t.gene == f"b0.{slot}")


def test_two_plug_ins_have_nothing_in_common() -> None:
    first, second = (
        Blueprint.model_validate(
            {
                "emb": {"dim": 16, "vocab": 37},
                "blocks": [{"id": "b0", "extras": [{"kind": "custom", "name": name, "params": params}]}],
            }
        )
        for name, params in (("plugins:Bottleneck", {"width": 4}), ("plugins:Sibling", {"width": 4}))
    )
    drawn = plan(second, [first])
    assert not drawn.exact
    assert drawn.notes == ("b0.extra.custom.0: plug-in plugins:Bottleneck became plugins:Sibling",)


@pytest.mark.parametrize(("before", "after"), [(None, 4.0), (4.0, None), (4.0, 1.0), (2.0, 4.0)])
@pytest.mark.parametrize("gate", ["none", "output"])
def test_positions_divided_by_another_factor_are_lossy(before: float | None, after: float | None, gate: str) -> None:
    parent = Attention(kind="MHA", heads=2, head_dim=8, rope_factor=before)
    child = Attention(kind="MHA", heads=2, head_dim=8, rope_factor=after, gating_pos=gate)
    assert not plan(holding(child), [holding(parent)]).exact
    assert digest(holding(child)) != digest(holding(parent))


def test_positions_divided_by_one_are_those_without_a_factor() -> None:
    plain, divided = (holding(Attention(kind="MHA", heads=2, head_dim=8, rope_factor=factor)) for factor in (None, 1.0))
    assert plan(divided, [plain]).exact
    assert digest(divided) == digest(plain)
