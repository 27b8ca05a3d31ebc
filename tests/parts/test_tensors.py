"""What a part declares of its tensors: starts that stand in a file, and tensors that training leaves alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from safetensors.torch import save_file

from morphogen.blueprint.effective import effective
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.cost import Step, costs, train_memory_bytes
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.inherit.descent import inherit
from morphogen.inherit.plan import plan
from morphogen.network import assemble, build, initial_state
from morphogen.parts.contract.alignment import Alignment
from morphogen.parts.contract.initial import draw, stream
from morphogen.parts.contract.part import Context, Cost, Part
from morphogen.parts.contract.tensors import Tensor, stored
from morphogen.plugins import allow_code
from morphogen.testing.models import ids_of, loss_of
from morphogen.training.optimizers import make_updater
from plugins import Bottleneck

WAY_IN = "blocks.0.extras.0.up.weight"


class Borrowed(Bottleneck):
    """Its way in stands in a file and stays as it is."""

    neutral_fields: ClassVar = frozenset({"width", "file"})

    file: str = ""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        way_in = Tensor(("width", "dim"), stored(self.file, "layer.weight"), trained=False)
        return {"up.weight": way_in, "down.weight": super().tensors(ctx)["down.weight"]}


class Unsized(Bottleneck):
    """It has an axis that it gives no length."""

    def sizes(self, ctx: Context) -> dict[str, int]:
        return {"widht": self.width, "dim": ctx.dim}


class Costless(Bottleneck):
    """Nobody can say what it costs."""

    def cost(self, ctx: Context) -> Cost:
        return Cost(flops=1.0 / (ctx.dim - 12))


class Unkept(Bottleneck):
    """Nobody can say what training keeps of it."""

    def kept(self, ctx: Context) -> float:
        return ctx.dim / (ctx.dim - 12)


class Unread(Bottleneck):
    """Nobody can say what it is at a length."""

    def within(self, ctx: Context) -> Self | None:
        raise LookupError("no such length")


class Heirless(Bottleneck):
    """Nobody can say how it inherits."""

    def align(self, parent: Part, ctx: Context, parent_ctx: Context) -> Alignment | None:
        return [][1]


class Listed(Bottleneck):
    """Its sizes are no names."""

    def sizes(self, ctx: Context) -> Any:
        return [self.width]


class Failing(Bottleneck):
    """Nobody can say which tensors it has."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        return dict(super().tensors(ctx)["up"])


class Misnamed(Bottleneck):
    """It declares a tensor that its module has under another name."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        return {"in.weight": Tensor(("width", "dim")), "down.weight": super().tensors(ctx)["down.weight"]}


class Silent(Bottleneck):
    """It declares fewer tensors than its module has."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        return {"up.weight": super().tensors(ctx)["up.weight"]}


class Turned(Bottleneck):
    """It declares a tensor that its module has in another shape."""

    def tensors(self, ctx: Context) -> dict[str, Tensor]:
        return {**super().tensors(ctx), "down.weight": Tensor(("width", "dim"))}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Silent", r"blocks.0.extras.0.down.weight: nothing in the part's `tensors`, \(12, 8\) in the module"),
        ("Turned", r"blocks.0.extras.0.down.weight: \(8, 12\) in the part's `tensors`, \(12, 8\) in the module"),
        ("Unsized", r"Custom: axis without a size: got 'width', expected one of dim, widht; did you mean 'widht'\?"),
        ("Costless", r"Custom: what it costs: ZeroDivisionError: .* \(Costless.cost:\d+\)"),
        ("Failing", r"Custom: what its tensors are: KeyError: 'up' \(Failing.tensors:\d+\)"),
        ("Listed", r"Custom: what its tensors are: TypeError: "),
        ("Misnamed", r"blocks.0.extras.0.in.weight: \(8, 12\) in the part's `tensors`, nothing in the module"),
    ],
)
def test_what_a_part_declares_wrongly_is_named(name: str, message: str) -> None:
    part = {"kind": "custom", "name": f"test_tensors:{name}", "params": {}}
    with allow_code():
        blueprint = Blueprint.model_validate({"emb": {"dim": 12, "vocab": 9}, "blocks": [{"extras": [part]}]})
    ask = functools.partial(costs, seq_len=8) if name == "Costless" else build
    with pytest.raises(InputError, match=message):
        ask(blueprint)


@pytest.mark.parametrize(
    ("name", "ask", "message"),
    [
        (
            "Unkept",
            lambda model: train_memory_bytes(model, 8, Step(1)),
            r"Custom: what training keeps of it: ZeroDivisionError: .* \(Unkept.kept:\d+\)",
        ),
        (
            "Unread",
            lambda model: effective(model, 8),
            r"Custom: what it is at 8 tokens: LookupError: no such length \(Unread.within:\d+\)",
        ),
        (
            "Heirless",
            lambda model: plan(model, [model]),
            r"b0.extra.custom.0: how it inherits: IndexError: list index out of range \(Heirless.align:\d+\)",
        ),
    ],
)
def test_what_a_part_of_others_raises_is_told_with_its_place(
    name: str, ask: Callable[[Blueprint], object], message: str
) -> None:
    part = {"kind": "custom", "name": f"test_tensors:{name}", "params": {}}
    with allow_code(), pytest.raises(InputError, match=message):
        ask(Blueprint.model_validate({"emb": {"dim": 12, "vocab": 9}, "blocks": [{"extras": [part]}]}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    weight = torch.arange(8.0 * 12).view(8, 12).to(torch.bfloat16)
    save_file({"layer.weight": weight, "other.weight": torch.zeros(2)}, path)
    return path


def model_of(file: Path, dim: int = 12, width: int = 8) -> Blueprint:
    part = {"kind": "custom", "name": "test_tensors:Borrowed", "params": {"file": str(file), "width": width}}
    block = {"extras": [part], "ffn": {"kind": "dense", "hidden": 16}}
    with allow_code():
        return Blueprint.model_validate({"emb": {"dim": dim, "vocab": 37}, "blocks": [block]})


def test_a_tensor_may_start_as_one_in_a_file_which_is_read_when_it_is_drawn(file: Path) -> None:
    absent = model_of(file.parent / "absent")  # neither this nor its plan reads anything
    assert [item.init_args for item in plan(absent, []).tensors if item.init == "stored"]
    state = initial_state(model_of(file), seed=0)
    assert torch.equal(state[WAY_IN], torch.arange(96.0).view(8, 12))
    assert torch.equal(state[WAY_IN], initial_state(model_of(file), seed=5)[WAY_IN])


@pytest.mark.parametrize(
    ("init", "shape", "said"),
    [
        (lambda path: stored(str(path), "layer.wieght"), (8, 12), "did you mean 'layer.weight'"),
        (
            lambda path: stored(str(path), "layer.weight"),
            (8, 13),
            r"has shape \(8, 12\), expected \(8, 13\)",
        ),
        (lambda path: stored(str(path.parent / "no"), "layer.weight"), (8, 12), "no: cannot be read as safetensors"),
        (lambda path: stored(str(path.parent), "layer.weight"), (8, 12), "cannot be read as safetensors"),
        (lambda path: stored(__file__, "layer.weight"), (8, 12), "test_tensors.py: cannot be read as safetensors"),
    ],
)
def test_a_tensor_that_is_not_there_is_named_with_its_file(file: Path, init, shape, said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw(init(file), shape, stream(0, "gene", "name"))


@pytest.mark.parametrize("rule", ["adamw", "lion", "muon"])
def test_what_is_not_trained_gets_no_gradient_and_stays_bit_for_bit(file: Path, rule: str) -> None:
    if rule == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    blueprint = model_of(file)
    before = initial_state(blueprint, seed=0)
    model = assemble(blueprint, {name: tensor.clone() for name, tensor in before.items()}).train()
    updater = make_updater(model, Train(lr=0.05, weight_decay=0.1, optimizer={"name": rule}))
    for seed in range(3):
        loss_of(model, ids_of(seed)).backward()
        updater.step(1.0)
    after = model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    names = {name for name, _ in model.named_parameters()}
    assert names - changed == {WAY_IN}
    assert not any(WAY_IN in of for of in updater.moments().values())
    assert parameter_count(blueprint) == sum(before[name].numel() for name in changed)


def test_what_is_not_trained_is_inherited_like_the_rest(file: Path) -> None:
    parent = model_of(file)
    state = initial_state(parent, seed=0)
    state[WAY_IN] += 1.0
    child = parent.evolve(head={"tie_embeddings": False})
    assert child is not None
    spliced, report = inherit(child, [(parent, state)], seed=1)
    assert torch.equal(spliced[WAY_IN], state[WAY_IN])
    assert report.exact


def test_numbers_in_a_start_are_read_back_from_a_plan_as_they_were(file: Path) -> None:
    drawn = plan(model_of(file), [])
    again = type(drawn).model_validate_json(drawn.model_dump_json())
    assert again == drawn
    assert {type(value) for item in again.tensors for value in item.init_args} == {float, str}
