"""Blueprints as numbers: every edit shows, and kinds of other packages are encoded like ours."""

import math

import numpy as np
from simulated import experiment

from morphogen.blueprint.encoding import encoded
from morphogen.blueprint.schema import Blueprint
from morphogen.variation.operator import mutate


def test_nearly_every_edit_shows_in_the_numbers_and_nothing_else_does():
    root = experiment().model
    before, alike = encoded(root), 0
    renamed = root.model_copy(update={"name": "another"})
    assert encoded(renamed) == before == encoded(Blueprint.model_validate(root.to_json()))
    for seed in range(80):
        after = encoded(mutate(root, np.random.default_rng(seed), 1, {}).child)
        assert all(math.isfinite(value) for value in after.values())
        alike += after == before
    assert alike == 0


def test_where_in_depth_something_stands_shows():
    def of(*kinds):
        ffn = {"kind": "dense", "hidden": 16}
        blocks = [{"ffn": ffn, "extras": [{"kind": kind}] if kind else []} for kind in kinds]
        return encoded(Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": blocks}))

    early, late = of("short_conv", None, None), of(None, None, "short_conv")
    name = "extras.short_conv.kind=short_conv"
    assert early[name] == late[name] == 1.0
    assert early[f"{name} by depth"] == -late[f"{name} by depth"] == -1.0
    assert f"{name} first" in early
    assert f"{name} first" not in late


def test_a_kind_of_another_package_is_encoded_with_its_parameters():
    def of(width):
        extra = {"kind": "custom", "name": "plugins:Bottleneck", "params": {"width": width}}
        blocks = [{"ffn": {"kind": "dense", "hidden": 16}, "extras": [extra]}]
        return encoded(Blueprint.model_validate({"emb": {"dim": 16, "vocab": 37}, "blocks": blocks}))

    assert of(8) != of(16)
    assert any("Bottleneck" in name for name in of(8))
    assert of(16)["extras.custom.params.width"] > of(8)["extras.custom.params.width"]
