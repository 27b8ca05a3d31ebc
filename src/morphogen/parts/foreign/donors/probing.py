"""Finds the layers of a model, and whether each of them can be run by itself and without seeing the future.

B batch, T tokens, D model dim
"""

from copy import deepcopy
from typing import Any, Final

import torch
from torch import Tensor, nn

from morphogen.parts.foreign.donors.frame import Call, Frame, Stop, seats_for
from morphogen.parts.foreign.donors.layers import ForeignLayer, LayerCache

#: What a class may raise that is built or called as it was not meant to be.
FAILURES: Final = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError),
    *(NameError, NotImplementedError, RuntimeError, StopIteration, TypeError, ValueError),
)
BATCH: Final = 2
TOKENS: Final = 5
#: Layers of more weights are not tried with random ones, which take memory: their class is believed.
PROVABLE: Final = 300_000_000
#: What layers may return: the residual stream by itself, or that and so many things in all.
RETURNS: Final = (None, 2, 3, 1, 4)


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
    model.set_submodule(path, seats_for(layers, stop))
    return Frame(model.eval(), tuple(layer.eval() for layer in layers), stop)


def probe(frame: Frame, dim: int) -> None:
    """Runs the model's own way to each of its layers. ValueError where a layer cannot be run by itself.

    Args:
        frame: The model without its layers; how many things they return is entered.
        dim: Width of the residual stream.
    """
    frame.stop.returns = _returned_by(frame, dim)
    proved: set[frozenset[type[nn.Module]]] = set()
    for index, layer in enumerate(frame.layers):
        call, other = _call(frame, index, dim), _call(frame, index, dim, filling=1.0)
        if not _same(call, other):
            raise ValueError(f"layer {index} is handed more than the residual stream")
        made_of = frozenset(type(module) for module in layer.modules())
        doubtful = frame.masked or LayerCache(frame, index).one_by_one
        if made_of in proved or (hides_future(call) and not doubtful):
            continue
        if sum(parameter.numel() for parameter in layer.parameters()) <= PROVABLE:
            with torch.no_grad():
                _prove(frame, index, dim)
        elif frame.masked:
            raise ValueError(f"layer {index} is too large to be tried under a causal mask")
        proved.add(made_of)


def _returned_by(frame: Frame, dim: int) -> int | None:
    """How many things the model takes its layers to return; None for a tensor by itself."""
    said = ""
    for returns in RETURNS:
        try:
            y = frame.passed(torch.zeros(BATCH, TOKENS, dim), returns)
        except FAILURES as error:
            said = said or str(error)
            continue
        if y.ndim == 3 and y.shape[:2] == (BATCH, TOKENS):
            return returns
    raise ValueError(said or "its layers return more than the residual stream")


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


def _same(call: Call, other: Call) -> bool:
    pairs = zip(call.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _prove(frame: Frame, index: int, dim: int) -> None:
    """Runs a layer under random weights. ValueError where a token changes those before it, or padding any.

    A layer that keeps what it remembers elsewhere than in a cache is run over all tokens again from then on.
    """
    noise = torch.Generator().manual_seed(0)
    layer = deepcopy(frame.layers[index]).to_empty(device="cpu")
    for parameter in layer.parameters():
        parameter.normal_(0.0, 0.1, generator=noise).add_(float(parameter.ndim == 1))
    module = ForeignLayer(frame, index, layer)
    x_BTD = torch.randn(1, TOKENS, dim, generator=noise).repeat(BATCH, 1, 1)
    x_BTD[1, -1] = torch.randn(dim, generator=noise)
    y_BTD = module(x_BTD)
    least = 1e-4 * y_BTD.abs().max()
    change_T = (y_BTD[0] - y_BTD[1]).abs().amax(dim=-1)
    if bool(change_T[:-1].max() > least) or not bool(change_T[-1] > least):
        raise ValueError(f"layer {index} sees the future, and takes no mask against it")
    mask_BT = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    mask_BT[:, 0] = False
    changed_BTD = torch.cat([-x_BTD[:, :1], x_BTD[:, 1:]], dim=1)
    padded, other = module(x_BTD, None, mask_BT), module(changed_BTD, None, mask_BT)
    if bool((padded - other)[:, 1:].abs().max() > least):
        raise ValueError(f"layer {index} takes padding for tokens")
    try:
        for _ in range(2):  # a second sequence, for what was kept of the first
            cache = module.new_cache()
            steps = torch.cat([module(x_BTD[:, t : t + 1], cache=cache) for t in range(TOKENS)], dim=1)
            frame.remembers &= bool((steps - y_BTD).abs().max() <= least)
    except FAILURES:
        frame.remembers = False  # then they are run over all tokens again
