"""Finds the layers of a model, and whether each of them can be run by itself and without seeing the future.

B batch, T tokens, D model dim
"""

from copy import deepcopy
from typing import Any, Final

import torch
from torch import Tensor, nn

from morphogen.errors import InputError
from morphogen.parts.foreign.donors.frame import Call, Frame, Seat, Stop, moved, returned

#: What a class may raise that is built or called as it was not meant to be.
FAILURES: Final = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, NotImplementedError, RuntimeError, TypeError, ValueError),
)
BATCH: Final = 2
TOKENS: Final = 5


def list_of_layers(model: nn.Module, layers: int) -> str | None:
    """The name of the list of a model's layers: of the lists of that many, the one with the most weights."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    fitting = [name for name, each in lists.items() if len(each) == layers]
    return max(fitting, key=lambda name: sum(p.numel() for p in lists[name].parameters()), default=None)


def seated(model: Any, path: str) -> Frame:
    """A model whose layers are taken out.

    Args:
        model: It, on the meta device.
        path: The name of the list of its layers.
    """
    layers, stop = tuple(model.get_submodule(path)), Stop()
    model.set_submodule(path, nn.ModuleList(Seat(layer, i, stop) for i, layer in enumerate(layers)))
    return Frame(model.eval(), tuple(layer.eval() for layer in layers), stop)


def probe(frame: Frame, dim: int) -> None:
    """Runs the model's own way to each of its layers. ValueError where a layer cannot be run by itself.

    Args:
        frame: The model without its layers; how many things they return is entered.
        dim: Width of the residual stream.
    """
    call = _call(frame, 0, dim)
    x = torch.empty(BATCH, TOKENS, dim, device="meta")
    y = frame.layers[0](**{call.first: x}, **_on_meta(call))
    frame.stop.returns = len(y) if isinstance(y, tuple) else None
    if returned(y).shape != x.shape:
        raise ValueError(f"a layer makes {tuple(returned(y).shape)} of {tuple(x.shape)}")
    proved: set[frozenset[type[nn.Module]]] = set()
    for index, layer in enumerate(frame.layers):
        call, other = _call(frame, index, dim), _call(frame, index, dim, filling=1.0)
        if not _same(call, other):
            raise ValueError(f"layer {index} is handed more than the residual stream")
        made_of = frozenset(type(module) for module in layer.modules())
        if hides_future(call) or made_of in proved:
            continue
        if not _runs_causally(frame, index, call, dim):
            raise ValueError(f"layer {index} sees the future, and takes no mask against it")
        proved.add(made_of)


def hides_future(call: Call) -> bool:
    """Whether among what a layer is handed is a mask against what comes later."""
    return any(_is_causal(tensor) for tensor in call.tensors())


def _is_causal(tensor: Tensor) -> bool:
    if tensor.ndim != 4 or tensor.shape[-2:] != (TOKENS, TOKENS):
        return False
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    hidden = tensor if tensor.dtype == torch.bool else tensor > torch.finfo(torch.float16).min / 2
    return not bool(hidden[..., later].any())


def _call(frame: Frame, index: int, dim: int, filling: float = 0.0) -> Call:
    x_BTD = torch.zeros(BATCH, TOKENS, dim)
    positions_BT = torch.arange(TOKENS).expand(BATCH, TOKENS)
    return frame.call(index, x_BTD, positions_BT, torch.ones(BATCH, TOKENS, dtype=torch.bool), filling=filling)


def _on_meta(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = moved(call.given, torch.device("meta"))
    return found


def _same(call: Call, other: Call) -> bool:
    pairs = zip(call.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _runs_causally(frame: Frame, index: int, call: Call, dim: int) -> bool:
    """Whether a change of the last token leaves those before, under random weights."""
    noise = torch.Generator().manual_seed(0)
    layer = deepcopy(frame.layers[index]).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.1, generator=noise).add_(float(parameter.ndim == 1))
        frame.fill(index, layer, torch.device("cpu"))
        x_BTD = torch.randn(1, TOKENS, dim, generator=noise).repeat(BATCH, 1, 1)
        x_BTD[1, -1] += 1.0
        y_BTD = returned(layer(**{call.first: x_BTD}, **call.given))
    change_T = (y_BTD[0] - y_BTD[1]).abs().amax(dim=-1)
    return bool(change_T[:-1].max() <= 1e-5 * y_BTD.abs().max()) and bool(change_T[-1] > 0)


def refuse(source: str, architecture: str, why: object) -> InputError:
    """What is said of an architecture whose layers cannot be had."""
    said = " ".join(str(why).split())[:200]
    return InputError(f"{source}: layers of architecture {architecture!r} cannot be run by themselves: {said}")
