"""What the stem's tensors become when tokens or positions are added, and what of it can be frozen."""

import pytest
import torch
from pydantic import ValidationError

from morphogen.blueprint.diff import canonical
from morphogen.blueprint.schema import Blueprint
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import assemble
from morphogen.testing.models import stirred


def model(vocab: int = 30, positions: int | None = None) -> Blueprint:
    return Blueprint.model_validate(
        {
            "emb": {"dim": 16, "vocab": vocab, "positions": positions},
            "blocks": [{"ffn": {"kind": "dense", "hidden": 16}}],
            "head": {"tie_embeddings": False, "bias": True},
        }
    )


def test_new_tokens_take_no_more_probability_than_old_ones_whatever_the_heads_bias_is() -> None:
    state = stirred(model(), dtype=torch.float32)
    state["head.bias"] = torch.full((30,), -6.0)
    grown, _ = inherit(model(40), [(model(), state)])
    with torch.no_grad():
        shares = assemble(model(40), grown).eval()(torch.arange(30)[None]).softmax(-1)[0, :, 30:].sum(-1)
    assert float(shares.max()) < 0.5
    assert torch.equal(grown["head.bias"], torch.full((40,), -6.0))


def test_positions_that_are_added_change_nothing_and_those_taken_away_do() -> None:
    state = stirred(model(positions=20), dtype=torch.float32)
    ids_BT = torch.arange(20)[None]
    wanted = assemble(model(positions=20), state).eval()(ids_BT)
    for before, after, exact in ((20, 40, True), (20, 8, False), (20, None, False), (None, 20, True)):
        assert plan(model(positions=after), [model(positions=before)]).exact is exact
    grown, report = inherit(model(positions=40), [(model(positions=20), state)])
    assert report.exact
    assert torch.equal(assemble(model(positions=40), grown).eval()(ids_BT), wanted)


def test_a_tied_head_is_frozen_as_the_embedding() -> None:
    blocks = [{"ffn": {"kind": "dense", "hidden": 8}}]
    with pytest.raises(ValidationError, match=r"a tied head is the embedding; expected emb\.freeze"):
        Blueprint.model_validate({"emb": {"dim": 8, "vocab": 20}, "blocks": blocks, "head": {"freeze": True}})
    assert "freeze" not in str(canonical(model()))
