"""Plug-ins: found by entry point or by module and class, refused with a reason, put in and tuned by evolution."""

from pathlib import Path

import pytest
import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads
from morphogen.errors import OperatorError
from morphogen.inherit import inherit
from morphogen.network import assemble, initial_state
from morphogen.parts.custom import Custom
from morphogen.variation.operator import edit

PLAIN = {"emb": {"dim": 8, "vocab": 11}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}


def with_plugin(name: str, **params: object) -> Blueprint:
    extras = [{"kind": "custom", "name": name, "params": params}]
    return Blueprint.model_validate({**PLAIN, "blocks": [{"extras": extras}]})


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution: its entry point `bottleneck` is the plug-in of tests/plugins.py, `broken` is none."""
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    points = "[morphogen.parts]\nbottleneck = plugins:Bottleneck\nbroken = raises:X\n"
    (info / "entry_points.txt").write_text(points)
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "not_python.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_installed")
def test_an_entry_point_names_a_plugin_in_yaml() -> None:
    blueprint = with_plugin("bottleneck", width=3)
    assert loads(dumps(blueprint)).parse(Blueprint) == blueprint
    part = blueprint.blocks[0].extras[0]
    assert isinstance(part, Custom)
    assert part.specs(blueprint.context())["up.weight"].shape == (3, 8)


@pytest.mark.usefixtures("_installed")
def test_evolution_puts_in_an_installed_plugin_and_tunes_it_without_a_jump() -> None:
    blueprint = Blueprint.model_validate(PLAIN)
    state = {name: tensor.double() for name, tensor in initial_state(blueprint, 0).items()}
    ids_BT = torch.arange(22).reshape(2, 11) % 11
    before = assemble(blueprint, state)(ids_BT)
    child, done = edit(blueprint, "insert_custom_module", 0)
    assert done.preserves
    state, report = inherit(child, [(blueprint, state)])
    assert report.exact
    assert torch.allclose(assemble(child, state)(ids_BT), before, atol=1e-12)
    state = {name: tensor + (0 if name.endswith("eps") else 0.1) for name, tensor in state.items()}
    before = assemble(child, state)(ids_BT)
    wider, done = edit(child, "tune_custom_module", 0)
    assert done.preserves
    state, report = inherit(wider, [(child, state)])
    assert report.exact
    assert report.fresh > 0
    assert torch.allclose(assemble(wider, state)(ids_BT), before, atol=1e-12)


@pytest.mark.usefixtures("_installed")
def test_an_installed_plugin_becomes_an_expert_among_others() -> None:
    moe = {"kind": "moe", "hidden": 8, "n_experts": 2, "k": 2}
    blueprint = Blueprint.model_validate({**PLAIN, "blocks": [{"ffn": moe}]})
    children = (edit(blueprint, "insert_other_expert", seed)[0] for seed in range(40))
    child = next(child for child in children if child.blocks[0].ffn.experts[-1].label == "custom")
    state, _ = inherit(child, [(blueprint, initial_state(blueprint, 0))])
    logits = assemble(child, state)(torch.arange(22).reshape(2, 11) % 11)
    assert logits.isfinite().all()
    assert any("others.0" in name for name in state)


@pytest.mark.usefixtures("_installed")
def test_a_plugin_that_cannot_be_imported_is_never_put_in() -> None:
    blueprint = Blueprint.model_validate(PLAIN)
    for seed in range(8):
        child, _ = edit(blueprint, "insert_custom_module", seed)
        assert child.blocks[0].extras == (Custom(name="bottleneck"),)


def test_without_installed_plugins_there_is_nothing_to_put_in() -> None:
    with pytest.raises(OperatorError):
        edit(Blueprint.model_validate(PLAIN), "insert_custom_module", 0)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("botleneck", {}, "did you mean 'bottleneck'"),
        ("plugins:Botleneck", {}, "expected a class that inherits from"),
        ("no_such_module:X", {}, "cannot import no_such_module"),
        ("..relative:X", {}, "cannot import ..relative"),
        ("not_python:X", {}, "cannot import not_python .SyntaxError"),
        ("raises:X", {}, "cannot import raises .ZeroDivisionError"),
        ("broken", {}, "cannot import raises:X .ZeroDivisionError"),
        ("pathlib:Path", {}, "expected a class that inherits from"),
        ("plugins:Bottleneck", {"width": 0}, "width: Input should be greater than 0"),
        ("plugins:Bottleneck", {"widht": 4}, "widht: Extra inputs are not permitted"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_a_reason(name: str, params: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_plugin(name, **params)


def test_a_plugin_in_place_of_another_carries_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import plugins

    monkeypatch.setattr(
        plugins, "Other", type("Other", (plugins.Bottleneck,), {"__module__": "plugins"}), raising=False
    )
    before, after = with_plugin("plugins:Bottleneck"), with_plugin("plugins:Other")
    _, report = inherit(after, [(before, initial_state(before, 0))])
    assert not report.exact
    assert any("plugins:Bottleneck became plugins:Other" in note for note in report.notes)
