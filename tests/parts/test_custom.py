"""Plug-ins: found by entry point or by module and class, refused with a reason, put in and tuned by evolution."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from morphogen.blueprint.diff import distance
from morphogen.blueprint.record import recorded
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads
from morphogen.cost import costs
from morphogen.errors import InputError, OperatorError
from morphogen.inherit.descent import inherit
from morphogen.network import assemble, initial_state
from morphogen.parts.contract.operator import OPERATORS
from morphogen.parts.contract.part import REGISTRY
from morphogen.parts.mixing.custom import Custom
from morphogen.plugins import allow_code, looking
from morphogen.variation.operator import check_weights, edit
from plugins import Bottleneck

PLAIN = {"emb": {"dim": 8, "vocab": 11}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}


def with_plugin(name: str, **params: object) -> Blueprint:
    extras = [{"kind": "custom", "name": name, "params": params}]
    return Blueprint.model_validate({**PLAIN, "blocks": [{"extras": extras}]})


#: A package's own kind of attention, with an operator of its own.
KINDS = """
from typing import ClassVar, Literal
from morphogen.parts.contract.operator import operator
from plugins import Bottleneck

class Narrows(Bottleneck):
    slot: ClassVar = "attn"
    kind: Literal["narrows"] = "narrows"

@operator(Narrows, preserves=True)
def widen_narrows(part, ctx, rng):
    return part.tune(ctx, rng)
"""
POINTS = """
[morphogen.parts]
bottleneck = plugins:Bottleneck
narrows = kinds:Narrows
misnamed = kinds:Narrows
broken = raises:X
leaving = leaves:X
[morphogen.operators]
narrowing = kinds
missing = no_such_module
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed distribution: its entry point `bottleneck` is the plug-in of tests/plugins.py, `broken` is none."""
    before = dict(REGISTRY), dict(OPERATORS)
    info = tmp_path / "somebody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "kinds.py").write_text(KINDS)
    (tmp_path / "not_python.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for place in REGISTRY.keys() - before[0].keys():
        del REGISTRY[place]
    for name in OPERATORS.keys() - before[1].keys():
        del OPERATORS[name]
    sys.modules.pop("kinds", None)


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
def test_a_kind_of_an_installed_package_stands_in_its_slot_as_ours_do() -> None:
    blueprint = loads("emb: {dim: 8, vocab: 11}\nblocks:\n  - attn: {kind: narrows, width: 3}\n").parse(Blueprint)
    assert loads(dumps(blueprint)).parse(Blueprint) == Blueprint.model_validate(blueprint.to_json()) == blueprint
    assert blueprint.blocks[0].attn == REGISTRY["attn", "narrows"].model_validate({"width": 3})
    state = initial_state(blueprint, 0)
    assert state["blocks.0.attn.up.weight"].shape == (3, 8)
    wider, _ = edit(blueprint, "widen_narrows", 0)
    assert inherit(wider, [(blueprint, state)])[1].exact
    assert costs(wider, 8)["params"] > costs(blueprint, 8)["params"]
    assert "widen_narrows" in OPERATORS
    check_weights({"widen_narrows": 2.0})
    assert '"narrows"' in str(Blueprint.model_json_schema()).replace("'", '"')


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("attn: {kind: narrows, widht: 3}", "attn.widht: unknown field, did you mean 'width'"),
        ("attn: {kind: narows}", "expected one of .*narrows; did you mean 'narrows'"),
        ("ffn: {kind: narrows}", "got 'narrows', expected one of dense, moe"),
        ("ffn: {kind: broken}", "plug-in broken: cannot import raises:X .ZeroDivisionError"),
        ("ffn: {kind: leaving}", "plug-in leaving: cannot import leaves:X .SystemExit"),
        ("ffn: {kind: misnamed}", "plug-in misnamed: its kind is narrows, expected misnamed"),
        ("ffn: {kind: bottleneck}", "plug-in bottleneck: has no kind of its own; it is .kind: custom"),
    ],
)
def test_a_kind_of_a_package_that_cannot_be_used_is_refused_with_its_place(part: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^<text>:3:\d+ blocks\[0\].*" + message):
        loads(f"emb: {{dim: 8, vocab: 11}}\nblocks:\n  - {part}\n").parse(Blueprint)


@pytest.mark.usefixtures("_installed", "no_code")
def test_code_that_data_names_is_not_run_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    data = {"emb": {"dim": 8, "vocab": 11}, "blocks": [{"extras": [{"kind": "custom", "name": "runs:X"}]}]}
    said = r"^in a record: blocks\[0\].extras\[0\].name: plug-in runs:X: names code, .*allow-code"
    with pytest.raises(InputError, match=said):
        recorded(Blueprint, data, "in a record")
    with looking():
        seen = Blueprint.model_validate(data)
        assert seen.to_json()["blocks"][0]["extras"] == [{"kind": "custom", "name": "runs:X", "params": {}}]
        assert distance(seen, seen) == 0.0
    with pytest.raises(InputError, match="names code"):
        costs(seen, 8)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("MORPHOGEN_ALLOW_CODE", "1")
    with pytest.raises(ValidationError, match="expected a class that inherits from"):
        Blueprint.model_validate(data)
    assert (tmp_path / "ran").exists()


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("botleneck", {}, "no installed package has it .* did you mean 'bottleneck'"),
        ("plugins:Botleneck", {}, "expected a class that inherits from"),
        ("no_such_module:X", {}, "cannot import no_such_module"),
        ("..relative:X", {}, "cannot import ..relative"),
        ("not_python:X", {}, "cannot import not_python .SyntaxError"),
        ("raises:X", {}, "cannot import raises .ZeroDivisionError"),
        ("broken", {}, "cannot import raises:X .ZeroDivisionError"),
        ("narrows", {}, "plug-in narrows: has a kind of its own; it is .kind: narrows"),
        ("pathlib:Path", {}, "expected a class that inherits from"),
        ("plugins:Bottleneck", {"width": 0}, "width: Input should be greater than 0"),
        ("plugins:Bottleneck", {"widht": 4}, "widht: Extra inputs are not permitted"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_a_reason(name: str, params: dict[str, int], message: str) -> None:
    with allow_code(), pytest.raises(ValueError, match=message):
        with_plugin(name, **params)


def test_a_plugin_in_place_of_another_carries_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import plugins

    monkeypatch.setattr(
        plugins, "Other", type("Other", (plugins.Bottleneck,), {"__module__": "plugins"}), raising=False
    )
    with allow_code():
        before, after = with_plugin("plugins:Bottleneck"), with_plugin("plugins:Other")
    _, report = inherit(after, [(before, initial_state(before, 0))])
    assert not report.exact
    assert any("plugins:Bottleneck became plugins:Other" in note for note in report.notes)


#: Operator -> the slot in which it puts one in, and a block where it may.
PUTS_IN = {
    "insert_attn": ("attn", {"ffn": {"kind": "dense", "hidden": 8}}),
    "insert_ssm": ("ssm", {"ffn": {"kind": "dense", "hidden": 8}}),
    "insert_ffn": ("ffn", {"ssm": {"kind": "mamba2", "head_dim": 8}}),
    "insert_custom_module": ("extra", {"ffn": {"kind": "dense", "hidden": 8}}),
    "add_extra_combo": ("extra", {"ffn": {"kind": "dense", "hidden": 8}}),
    "insert_other_expert": ("ffn", {"ffn": {"kind": "moe", "hidden": 8, "n_experts": 2}}),
    "toggle_ssm": ("ssm", {"attn": {"kind": "MHA", "heads": 1, "head_dim": 8}}),
}


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """A kind of this test's for the slot of an operator, gone after it."""
    operator, module = request.param
    slot = PUTS_IN[operator][0]
    body = {"__annotations__": {"kind": Literal["seen_here"]}, "kind": "seen_here", "slot": slot}
    type("SeenHere", (Bottleneck,), {**body, "__module__": module})
    yield "seen_here"
    del REGISTRY[slot, "seen_here"]


@pytest.mark.parametrize(
    ("kind", "operator"),
    [((name, module), name) for name in PUTS_IN for module in (__name__, "morphogen.parts.new")],
    indirect=["kind"],
)
def test_operators_choose_among_new_kinds_too_of_other_packages_and_ours(kind: str, operator: str) -> None:
    blueprint = Blueprint.model_validate({**PLAIN, "blocks": [PUTS_IN[operator][1]]})
    children = [edit(blueprint, operator, seed) for seed in range(40)]
    with_kind = [(child, done) for child, done in children if kind in child.model_dump_json()]
    assert 0 < len(with_kind) <= len(children)
    child, done = with_kind[0]
    state = {name: tensor.double() for name, tensor in initial_state(blueprint, 0).items()}
    after, report = inherit(child, [(blueprint, state)])
    assert report.exact == done.preserves
    assert assemble(child, after)(torch.arange(22).reshape(2, 11) % 11).isfinite().all()
