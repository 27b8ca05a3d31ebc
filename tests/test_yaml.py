"""YAML in the layout of the file it came from: comments, order, aliases."""

from typing import Any

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads
from morphogen.experiment import Experiment

TEXT = """\
# what it is for
model:
  norm: layernorm      # as the peer's
  emb: {dim: 16}
  blocks:
    - attn: {type: MHA, heads: 2, head_dim: 8, sparsity: sliding, sw: 9}   # near
      ffn: {kind: dense, hidden: 16}
train: {lr: 0.01}      # high
"""

SHARED = """\
model:
  emb: {dim: 16}
  blocks:
    - &plain
      attn: &heads {kind: MHA, heads: 2, head_dim: 8}   # once
      ffn: &wide {kind: dense, hidden: 16}
    - *plain
    - attn: *heads
      ffn: {<<: *wide, hidden: 24}
    - <<: *plain
      parallel: true
"""


def with_hidden(experiment: Experiment, at: int, hidden: int) -> Experiment:
    """The experiment with another feed-forward layer in one block."""
    data: dict[str, Any] = experiment.model_dump(mode="json")
    data["model"]["blocks"][at]["ffn"]["hidden"] = hidden
    return Experiment.model_validate(data)


def test_comments_and_order_survive_loading_and_saving() -> None:
    document = loads(TEXT)
    experiment = with_hidden(document.parse(Experiment), 0, 40)
    text = dumps(experiment, like=document)
    assert loads(text).parse(Experiment) == experiment
    for comment in ("# what it is for", "# as the peer's", "# near", "# high"):
        assert comment in text
    assert text.index("norm:") < text.index("emb:") < text.index("train:")
    assert "hidden: 40" in text


def test_what_an_alias_repeats_is_saved_place_by_place() -> None:
    for at in range(4):
        document = loads(SHARED)
        experiment = with_hidden(document.parse(Experiment), at, 40)
        text = dumps(experiment, like=document)
        assert loads(text).parse(Experiment) == experiment
        assert [block.id for block in experiment.model.blocks] == ["b0", "b1", "b2", "b3"]
        assert "# once" in text


def test_a_blueprint_alone_has_no_layout_to_keep() -> None:
    blueprint = loads(TEXT).parse(Experiment).model
    assert loads(dumps(blueprint)).parse(Blueprint) == blueprint
