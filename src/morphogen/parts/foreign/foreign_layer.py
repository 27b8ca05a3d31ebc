"""The module of `Foreign`.

B batch, T tokens, D model dim, E width of another model, N lanes, K choices
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from morphogen.ops import routing
from morphogen.ops.autocast import no_autocast
from morphogen.ops.prefix_pooling import prefix_attention, prefix_max, prefix_mean
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, Unchanged, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.foreign.donors.layers import ForeignLayer, LayerCache
from morphogen.parts.foreign.donors.opened import donor_of, shapes_of, width_of
from morphogen.parts.foreign.donors.remembered import cache_of, tensors_of
from morphogen.parts.foreign.foreign import DOWN, UP, Foreign, flat_name

#: What the names of a router's own memory begin with, in a branch's state.
POOL = "pool."


class ForeignBranch(Branch):
    """The module of `Foreign`. While decoding it remembers what each of its layers does, and the router's prefix."""

    def __init__(self, part: Foreign, ctx: Context) -> None:
        super().__init__()
        self.part, self.lanes = part, part.lanes()
        self.norm = make_norm(ctx.norm, ctx.dim) if part.normed else Unchanged()
        widths = [width_of(part.experts[lane.first].model) for lane in self.lanes]
        sources = [ctx.dim if lane.after is None else widths[lane.after] for lane in self.lanes]
        each = list(zip(sources, widths, strict=True))
        units, dim = part.bottleneck, ctx.dim
        self.read = nn.ModuleList(Linear(source, width) for source, width in each)
        if part.adapter == "linear":
            self.write = nn.ModuleList(Linear(width, dim) for width in widths)
        else:
            self.read_down = nn.ModuleList(Linear(source, units) for source in sources)
            self.read_up = nn.ModuleList(Linear(units, width) for width in widths)
            self.write_down = nn.ModuleList(Linear(width, units) for width in widths)
            self.write_up = nn.ModuleList(Linear(units, dim) for _ in widths)
        looks = part.router == "simple" and part.pooling == "attention"
        self.pool = Linear(dim, 1) if looks else None
        self.router = None if part.router == "none" else Linear(dim, len(self.lanes))
        self.layers = nn.ModuleList(donor_of(e.model).layer_module(e.layer) for e in part.experts)
        self._added: list[dict[str, tuple[int, ...]]] = []
        if part.lora:
            matrices = self._added = [self._matrices(i) for i in range(len(part.experts))]
            empty = [{flat_name(name): torch.empty(shape) for name, shape in of.items()} for of in matrices]
            downs = [{key: x.new_empty(part.lora, x.shape[1]) for key, x in of.items()} for of in empty]
            ups = [{key: x.new_empty(x.shape[0], part.lora) for key, x in of.items()} for of in empty]
            self.add_module(DOWN, nn.ModuleList(_parameters(of) for of in downs))
            self.add_module(UP, nn.ModuleList(_parameters(of) for of in ups))
        for fixed in self._fixed():
            fixed.requires_grad_(False)

    def _fixed(self) -> list[nn.Module]:
        """What is never trained."""
        return [
            *([self.read] if self.part.adapter == "bottleneck" else []),
            *([self.layers] if self.part.freeze else []),
        ]

    def _matrices(self, i: int) -> dict[str, tuple[int, ...]]:
        expert = self.part.experts[i]
        shapes = shapes_of(expert.model, expert.layer)
        return {name: shape for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")}

    def train(self, mode: bool = True) -> Self:
        """The layers run as they do in use, without dropout, also while what is around them trains."""
        super().train(mode)
        self.layers.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Where frozen layers are offloaded, they stay in the host's memory wherever the rest goes, all the way."""
        if not (self.part.offload and self.part.freeze):
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]
        layers = self.layers
        self._modules["layers"] = None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        finally:
            self._modules["layers"] = layers
        layers._apply(lambda tensor: _at_home(fn, tensor))  # type: ignore[no-untyped-call]
        return self

    # ------------------------------------------------------------------------------------------------ running

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self._mix(x_BTD, None)

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        return self._mix(x_BTD, state)

    def _mix(self, x_BTD: Tensor, state: State | None) -> Tensor:
        gates_BTN = self._gates(x_BTD, state)
        written, ends = list[Tensor](), list[Tensor]()
        for n, lane in enumerate(self.lanes):
            start_BTE = h_BTE = self._read(n, x_BTD if lane.after is None else ends[lane.after])
            for i in range(lane.first, lane.end):
                h_BTE = self._layer(i, h_BTE, state)
            ends.append(h_BTE)
            y_BTD = self._write(n, h_BTE - start_BTE) * start_BTE.shape[-1] ** -0.5
            written.append(y_BTD if gates_BTN is None else y_BTD * gates_BTN[:, :, n, None].to(y_BTD.dtype))
        return written[0] if len(written) == 1 else torch.stack(written).sum(0)

    def _read(self, n: int, x_BTD: Tensor) -> Tensor:
        h_BTE: Tensor = self.read[n](x_BTD)
        if self.part.adapter == "bottleneck":
            h_BTE = h_BTE + self.read_up[n](F.gelu(self.read_down[n](x_BTD)))
        return h_BTE

    def _write(self, n: int, change_BTE: Tensor) -> Tensor:
        if self.part.adapter == "bottleneck":
            change_BTE = F.gelu(self.write_down[n](change_BTE))
            y_BTD: Tensor = self.write_up[n](change_BTE)
        else:
            y_BTD = self.write[n](change_BTE)
        return y_BTD

    # ------------------------------------------------------------------------------------------------ layers

    def _layer(self, i: int, x_BTE: Tensor, state: State | None) -> Tensor:
        """Layer i, after what `state` remembers of it."""
        layer = self.layers[i]
        assert isinstance(layer, ForeignLayer)
        if state is None:
            if self._comes_and_goes(x_BTE) and torch.is_grad_enabled():
                # in the backward pass its weights come again, so that none waits on the device for it
                y_BTE: Tensor = checkpoint(self._called, i, layer, x_BTE, None, use_reentrant=False)
                return y_BTE
            return self._called(i, layer, x_BTE, None)
        prefix = f"{i}."
        known = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        cache = cache_of(known, layer)
        y_BTE = self._called(i, layer, x_BTE, cache)
        state.update({prefix + name: tensor for name, tensor in tensors_of(cache).items()})
        return y_BTE

    def _called(self, i: int, layer: ForeignLayer, x_BTE: Tensor, cache: LayerCache | None) -> Tensor:
        weights = self._weights(i, layer, x_BTE)
        y_BTE: Tensor = (
            functional_call(layer, weights, (x_BTE,), {"cache": cache}) if weights else layer(x_BTE, cache=cache)
        )
        return y_BTE

    def _comes_and_goes(self, x_BTE: Tensor) -> bool:
        return self.part.offload and self.part.freeze and x_BTE.device.type not in ("cpu", "meta")

    def _weights(self, i: int, layer: ForeignLayer, x_BTE: Tensor) -> dict[str, Tensor]:
        """What runs in the place of the layer's own parameters: copies on this device, matrices with what is added."""
        weights: dict[str, Tensor] = {}
        if self._comes_and_goes(x_BTE):
            weights = {name: x.to(x_BTE.device, non_blocking=True) for name, x in layer.named_parameters()}
        if self.part.lora:
            own = weights or dict(layer.named_parameters())
            for name in self._added[i]:
                up, down = (self.get_parameter(f"{group}.{i}.{flat_name(name)}") for group in (UP, DOWN))
                weights[name] = own[name] + up @ down
        return weights

    # ------------------------------------------------------------------------------------------------ routing

    def gates(self, x_BTD: Tensor) -> Tensor | None:
        """How much of each lane every token of the stream gets, (B, T, N); None without a router."""
        return self._gates(self.norm(x_BTD), None)

    def _gates(self, x_BTD: Tensor, state: State | None) -> Tensor | None:
        """How much of each lane every token gets, in fp32 at least; None without a router."""
        if self.router is None:
            return None
        with no_autocast(x_BTD.device):
            x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
            seen_BTD = self._pooled(x_BTD, state) if self.part.router == "simple" else x_BTD
            logits_NF = F.linear(seen_BTD, self.router.weight.to(seen_BTD.dtype)).flatten(0, 1)
            if self.part.router == "simple":
                gates_NF = probs_NF = logits_NF.softmax(-1)
                load_F = probs_NF.detach().sum(0)
            else:
                if self.training and self.part.noise:
                    logits_NF = logits_NF + self.part.noise * torch.randn_like(logits_NF)
                chosen = routing.choose(logits_NF, self.part.top_k, "softmax")
                gates_NF = torch.zeros_like(logits_NF).scatter(1, chosen.places_NK, chosen.weights_NK)
                probs_NF = chosen.logp_NF.exp()
                load_F = chosen.places_NK.flatten().bincount(minlength=len(self.lanes)).to(probs_NF.dtype)
            self._report(probs_NF, load_F)
        return gates_NF.view(*x_BTD.shape[:2], -1)

    def _pooled(self, x_BTD: Tensor, state: State | None) -> Tensor:
        """The prefix of every token, summed up."""
        known = {} if state is None else state
        past = {name.removeprefix(POOL): x for name, x in known.items() if name.startswith(POOL)}
        if self.pool is not None:
            score_BT = F.linear(x_BTD, self.pool.weight.to(x_BTD.dtype))[:, :, 0]
            pooled_BTD = prefix_attention(x_BTD, score_BT, past)
        else:
            pooled_BTD = (prefix_mean if self.part.pooling == "mean" else prefix_max)(x_BTD, past)
        if state is not None:
            state.update({POOL + name: tensor for name, tensor in past.items()})
        return pooled_BTD

    def _report(self, probs_NF: Tensor, load_F: Tensor) -> None:
        """Auxiliary losses and figures, while a recording is open."""
        if self.record is None:
            return
        entropy = routing.entropy(probs_NF)
        if self.part.balance:
            self.record.add_loss("balance", self.part.balance * routing.balance_loss(probs_NF, load_F))
        self.record.add_loss("router_entropy", entropy)
        self.record.add_figure("foreign_router_entropy", entropy)
        self.record.add_figure("foreign_load_max_over_mean", load_F.max() / load_F.mean())


def _at_home(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What `fn` makes of a tensor, but in the host's memory: an empty one tells where it would go."""
    wanted = fn(tensor.new_empty(0))
    if wanted.device.type in ("cpu", "meta"):
        return fn(tensor)
    if tensor.is_meta:
        return torch.empty_like(tensor, device="cpu", dtype=wanted.dtype)
    return tensor.to("cpu", wanted.dtype)


def _parameters(of: dict[str, Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({key: nn.Parameter(x) for key, x in of.items()})
