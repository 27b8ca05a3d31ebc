"""What a model hands to each of its layers beside the residual stream: masks, rotary tables, biases, caches.

Nothing is known of an architecture by name. The model's own class is built on the meta device, every layer of it is
taken out and a seat put in its place; the model's own forward then runs up to the seat that is asked for, which tells
what it was called with. Weights outside the layers stand for nothing there and are all the same number, so that no
memory is taken by them, and a layer that needs more of them than its residual stream is found out.

B batch, T tokens, S tokens with those before, D model dim
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

#: What models call the tokens that they have seen.
CACHES: Final = ("cache", "past_key_values", "cache_params")
MASK: Final = "attention_mask"
#: What weights are in the copy that is asked where tokens can stand.
ASKED: Final = -1.0


class Reached(Exception):  # noqa: N818
    """The seat that was asked for, and what it was called with."""

    def __init__(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.hidden = hidden
        self.args_given, self.kwargs_given = args, kwargs


@dataclass
class Stop:
    """Which seat tells, or in place of that gives `out`. returns: how many things layers return, None for a tensor."""

    index: int = 0
    returns: int | None = None
    out: Tensor | None = None


class Seat(nn.Module):
    """Stands where a layer stood, with its plain attributes, which a model may ask for."""

    def __init__(self, layer: nn.Module, index: int, stop: Stop) -> None:
        super().__init__()
        plain = {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "training"}
        self.__dict__.update(plain)
        self._index, self._stop = index, stop

    def __getattr__(self, name: str) -> Any:
        """No more than that."""
        raise AttributeError(f"its model reaches into a layer for its {name!r}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hands on what it is given, or stops."""
        hidden = args[0] if args else next(iter(kwargs.values()))
        if self._index == self._stop.index:
            if self._stop.out is None:
                raise Reached(hidden, args, kwargs)
            hidden = self._stop.out
        return hidden if self._stop.returns is None else (hidden, *[None] * (self._stop.returns - 1))


def seats_for(layers: Iterable[nn.Module], stop: Stop) -> nn.ModuleList:
    """Seats in place of layers."""
    return nn.ModuleList(Seat(layer, i, stop) for i, layer in enumerate(layers))


@dataclass(frozen=True)
class Live:
    """A frame whose tensors are real, on one device and of one type."""

    model: Any
    stop: Stop


@dataclass(frozen=True)
class Call:
    """What a layer is called with, beside the residual stream. first: what it calls that."""

    first: str
    given: dict[str, Any]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of it."""
        yield from _tensors(self.given)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for each in value.values() for tensor in _tensors(each))
    elif isinstance(value, tuple | list):
        yield from (tensor for each in value for tensor in _tensors(each))


@dataclass
class Frame:
    """A model without its layers.

    model: It, on the meta device, with seats for layers. layers: what stood there, on the meta device. masked: whether
    its layers see the future unless the mask that they are handed is made causal. remembers: whether they keep what
    they have seen in a cache; if not, they are run over all tokens again.
    """

    model: Any
    layers: tuple[nn.Module, ...]
    stop: Stop
    masked: bool = False
    remembers: bool = True
    _live: dict[tuple[str, torch.dtype, float], Live] = field(default_factory=dict)
    _reached: int = 0
    _tables: dict[tuple[int, str], list[tuple[str, str, Tensor | None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.takes = frozenset(inspect.signature(self.model.forward).parameters)
        self.width = int(self.model.get_input_embeddings().weight.shape[1])
        self.cache_name = next((name for name in CACHES if name in self.takes), None)
        config = self.model.config
        #: How many tokens it says that it has places for; None where it does not say.
        self.places: int | None = config.max_position_embeddings if hasattr(config, "max_position_embeddings") else None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frame":
        return self  # nothing of it changes

    def call(
        self,
        layer: int,
        x_BTD: Tensor,
        positions_BT: Tensor,
        mask_BS: Tensor,
        cache: Any = None,
        *,
        filling: float = 0.0,
        last: int | None = None,
    ) -> Call:
        """What the model hands to a layer.

        Args:
            layer: Which.
            x_BTD: Its residual stream, of which only shape, type and device count.
            positions_BT: Where the tokens stand.
            mask_BS: 1 where a token is one, of all tokens so far.
            cache: transformers' cache, which holds what the layer has seen.
            filling: What every weight outside the layers is.
            last: The call is for so many of the last tokens; by default for all of them.
        """
        device = x_BTD.device
        if device.type == "meta":  # masks and positions are numbers all the same
            device = torch.device("cpu")
            positions_BT, mask_BS = _real(positions_BT), _real(mask_BS)
        live = self._on(device, x_BTD.dtype, filling)
        live.stop.index, live.stop.returns = layer, self.stop.returns
        mask_BS = mask_BS.to(device, torch.long)
        try:
            self._forward(live, x_BTD.new_empty((), device=device).expand(x_BTD.shape), positions_BT, mask_BS, cache)
        except Reached as reached:
            call = self._named(layer, reached)
        else:
            raise LookupError(f"layer {layer} was not run")
        call = self._masked(call, x_BTD, mask_BS)
        if last is not None:
            call = Call(call.first, _last(call.given, x_BTD.shape[1], last))
        return Call(call.first, moved(call.given, x_BTD.device)) if x_BTD.device != device else call

    def passed(self, x_BTD: Tensor, returns: int | None) -> Tensor:
        """What the model makes of layers that all hand on what they are given, and return so many things."""
        live = self._on(x_BTD.device, x_BTD.dtype, 0.0)
        live.stop.index, live.stop.returns = -1, returns
        ones_BT = torch.ones(x_BTD.shape[:2], dtype=torch.long)
        found: Tensor = self._forward(live, x_BTD, ones_BT.cumsum(1) - 1, ones_BT, None).last_hidden_state
        return found

    def _forward(self, live: Live, x_BTD: Tensor, positions_BT: Tensor, mask_BS: Tensor, cache: Any) -> Any:
        if self._beyond(mask_BS.shape[1]):
            # learned positions are added before the first layer: to a layer it does not matter that there are fewer
            positions_BT = torch.zeros_like(positions_BT)
        given: dict[str, Any] = {
            "inputs_embeds": x_BTD.new_zeros(*x_BTD.shape[:2], self.width),
            MASK: mask_BS,
            "position_ids": positions_BT.to(x_BTD.device),
            "use_cache": cache is not None,
        }
        if self.cache_name is not None:
            given[self.cache_name] = cache
        known = {name: value for name, value in given.items() if name in self.takes}
        with torch.no_grad():
            return live.model(**known)

    def _beyond(self, tokens: int) -> bool:
        """Whether the model has learned positions, and fewer. Asked of the last of them on the CPU, since to some
        accelerators an index too large is the end."""
        if "position_ids" not in self.takes:
            return False
        for asked in (2 * tokens, tokens):
            if tokens <= self._reached:
                return False
            if self._stands(asked - 1):
                self._reached = asked
        return tokens > self._reached and self._stands(0)

    def _stands(self, position: int) -> bool:
        """Whether a token can stand there."""
        live = self._on(torch.device("cpu"), torch.float32, ASKED)  # one of its own: some tables grow with positions
        live.stop.index, live.stop.out = 0, None
        place_BT = torch.tensor([[position]])
        given = {"inputs_embeds": torch.zeros(1, 1, self.width), "position_ids": place_BT, "use_cache": False}
        try:
            with torch.no_grad():
                live.model(**{name: value for name, value in given.items() if name in self.takes})
        except Reached:
            return True
        except (IndexError, RuntimeError):
            return False
        return True

    def fill(self, index: int, layer: nn.Module, device: torch.device) -> None:
        """Puts the tables of a layer in place that follow from the config: those of `index`, on a device."""
        if (key := (index, str(device))) not in self._tables:
            made = deepcopy(self.layers[index])
            for module in made.modules():
                remade(self.model, module, torch.device("cpu"))
            self._tables[key] = [
                (name, table, moved(module._buffers[table], device))
                for name, module in made.named_modules()
                for table in tables(module)
            ]
        for name, table, made_of in self._tables[key]:
            layer.get_submodule(name)._buffers[table] = made_of

    def _named(self, layer: int, reached: Reached) -> Call:
        signature = inspect.signature(self.layers[layer].forward)
        bound = signature.bind(*reached.args_given, **reached.kwargs_given)
        first = next(iter(signature.parameters))
        given = dict(bound.arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        del given[first]
        return Call(first, given)

    def _masked(self, call: Call, x_BTD: Tensor, mask_BS: Tensor) -> Call:
        """With the mask made causal where the layers see the future; one by token as long as there are tokens."""
        mask, tokens = call.given.get(MASK), x_BTD.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] > tokens:
            return Call(call.first, {**call.given, MASK: mask[:, -tokens:]})
        if not self.masked:
            return call
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=mask_BS.device).tril()
        seen = causal & (mask_BS[:, None, None, :].bool() | torch.eye(tokens, dtype=torch.bool, device=causal.device))
        least = torch.finfo(x_BTD.dtype).min
        added = torch.zeros(seen.shape, dtype=x_BTD.dtype, device=seen.device).masked_fill(~seen, least)
        if isinstance(mask, Tensor) and mask.ndim == 4:
            added = (
                torch.minimum(mask.to(added.dtype), added)
                if mask.is_floating_point()
                else added.masked_fill(~mask, least)
            )
        return Call(call.first, {**call.given, MASK: added})

    def _on(self, device: torch.device, dtype: torch.dtype, filling: float) -> Live:
        key = (str(device), dtype, filling)
        if key not in self._live:
            model, stop = deepcopy((self.model, self.stop))
            for module in model.modules():
                for name, _ in list(module.named_parameters(recurse=False)):
                    flat(module, name, filling, dtype, device)
                remade(model, module, device)
            self._live[key] = Live(model.eval(), stop)
        return self._live[key]


def flat(module: nn.Module, name: str, value: float, dtype: torch.dtype, device: torch.device) -> None:
    """One number in place of a parameter, of its shape, known as settled to those who draw initial weights."""
    shape = module.get_parameter(name).shape
    made = nn.Parameter(torch.full((), value, dtype=dtype, device=device).expand(shape), requires_grad=False)
    made._is_hf_initialized = True  # type: ignore[attr-defined]
    module.register_parameter(name, made)


def tables(module: nn.Module) -> Iterator[str]:
    """The names of a module's own tensors that follow from the config: they are in no checkpoint."""
    left_out = module._non_persistent_buffers_set
    yield from (name for name, buffer in module._buffers.items() if buffer is not None and name in left_out)


def remade(model: Any, module: nn.Module, device: torch.device) -> None:
    """Fills the tensors of a module on the meta device that follow from the config, as its model's class does.

    ValueError where the class does not say how.
    """
    names = [name for name in tables(module) if module._buffers[name].is_meta]  # type: ignore[union-attr]
    for name in names:
        buffer = module._buffers[name]
        assert buffer is not None
        empty = torch.full_like(buffer, _unset(buffer.dtype), device=device)
        module._buffers[name] = empty
    if names:
        model._init_weights(module)
    for name in names:
        buffer = module._buffers[name]
        assert buffer is not None
        unset = buffer.isnan() if buffer.is_floating_point() else buffer == _unset(buffer.dtype)
        if buffer.dtype != torch.bool and buffer.numel() and bool(unset.all()):
            raise ValueError(f"{type(module).__name__} does not say how its {name} is made")


def returned(y: Any) -> Tensor:
    """The residual stream of what a layer returns."""
    found: Tensor = y[0] if isinstance(y, tuple | list) else y
    return found


def _real(given_BT: Tensor) -> Tensor:
    """Positions or a mask; on the meta device, ones in their place."""
    return torch.ones(given_BT.shape, dtype=torch.long) if given_BT.is_meta else given_BT


def _unset(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).min


def _last(value: Any, tokens: int, last: int) -> Any:
    """What goes with the last tokens, of what goes with all of them."""
    if isinstance(value, Tensor):
        if value.ndim == 4 and value.shape[-2:] == (tokens, tokens):
            return value[:, :, -last:]
        return value[:, -last:] if value.ndim > 1 and value.shape[1] == tokens else value
    if isinstance(value, dict):
        return {name: _last(each, tokens, last) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_last(each, tokens, last) for each in value)
    return value


def moved(value: Any, device: torch.device) -> Any:
    """All tensors of what a layer is handed, on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(each, device) for each in value)
    return value
