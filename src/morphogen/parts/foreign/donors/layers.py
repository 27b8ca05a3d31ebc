"""A layer of another model, run as that model runs it, and always under a causal mask.

B batch, T tokens, S tokens with those before, D model dim
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from morphogen.errors import InputError
from morphogen.parts.foreign.donors.attention import Remembered
from morphogen.parts.foreign.donors.frame import Frame, returned


class Seen(DynamicLayer):  # type: ignore[misc]
    """Tells how many tokens were seen, for a layer that remembers none of them by itself."""

    def __init__(self, cache: "LayerCache") -> None:
        super().__init__()
        self._cache = cache

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self._cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens with these, and where the first of them stands."""
        return self._cache.length + query_length, 0


class LayerCache:
    """What one layer remembers of a batch of sequences.

    length: tokens seen. kept: what the model takes for its cache. own: what of that is the layer's; None where its
    inputs are kept, and it is run again on all of them. one_by_one: whether what is remembered goes on from token to
    token only.
    """

    def __init__(self, frame: Frame, layer: int) -> None:
        self.length = 0
        self.mask_BS: Tensor | None = None
        self.positions_BS: Tensor | None = None
        self.inputs_BSD: Tensor | None = None
        self.kept: Any = None
        self.own: Any = None
        self.one_by_one = False
        if frame.masked and frame.remembers:
            self.kept = self.own = Remembered()
        elif frame.cache_name is not None and frame.remembers:
            own = DynamicCache(config=frame.model.config).layers
            own = own[layer] if layer < len(own) else DynamicLayer()
            self.one_by_one = isinstance(own, LinearAttentionCacheLayerMixin)
            shown = own if isinstance(own, CacheLayerMixin) else Seen(self)
            self.own = own
            self.kept = Cache(layers=[own if i == layer else shown for i in range(len(frame.layers))])


class ForeignLayer(nn.Module):
    """A layer of another model: its own class, built from the model's config.

    The output holds what the layer's own residual connections add to; what the layer changes is y - x. Tables that
    follow from the config (rotary ones) are no parameters and lie in no checkpoint.

    executed: how often the layer was run.
    """

    def __init__(self, frame: Frame, index: int, layer: nn.Module) -> None:
        """Takes the layer to run.

        Args:
            frame: The model around it.
            index: Where it stood there.
            layer: It, with tensors of its own.
        """
        super().__init__()
        self.layer = layer
        self.index = index
        self.executed = 0
        self._frame = frame

    def new_cache(self) -> LayerCache:
        """An empty one, for one batch of sequences."""
        return LayerCache(self._frame, self.index)

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            x_BTD: The residual stream.
            positions_BT: Where the tokens stand; by default one after the other, from 0 or on from the cache.
            mask_BT: True where a token is one and no padding; by default all are.
            cache: What the layer remembers of the tokens before; these are added to it.

        Returns:
            The residual stream after it. What comes later changes nothing before, nor does padding.
        """
        B, T, _ = x_BTD.shape
        seen = 0 if cache is None else cache.length
        if cache is not None and cache.one_by_one and seen and T > 1:
            return self._one_by_one(x_BTD, positions_BT, mask_BT, cache)
        if positions_BT is None:
            positions_BT = torch.arange(seen, seen + T, device=x_BTD.device).expand(B, T)
        positions_BT = positions_BT.expand(B, T)
        mask_BS = torch.ones(B, T, dtype=torch.bool, device=x_BTD.device) if mask_BT is None else mask_BT.bool()
        if cache is None:
            return self._run(x_BTD, positions_BT, mask_BS)
        mask_BS = _joined(cache.mask_BS, mask_BS)
        positions_BS = _joined(cache.positions_BS, positions_BT)
        if cache.kept is None:
            cache.inputs_BSD = _joined(cache.inputs_BSD, x_BTD)
            y_BTD = self._run(cache.inputs_BSD, positions_BS, mask_BS)[:, -T:]
        else:
            y_BTD = self._run(x_BTD, positions_BS, mask_BS, cache.kept)
        cache.mask_BS, cache.positions_BS, cache.length = mask_BS, positions_BS, seen + T
        return y_BTD

    def _one_by_one(
        self, x_BTD: Tensor, positions_BT: Tensor | None, mask_BT: Tensor | None, cache: LayerCache
    ) -> Tensor:
        rows = [
            self(
                x_BTD[:, t : t + 1],
                None if positions_BT is None else positions_BT[..., t : t + 1],
                None if mask_BT is None else mask_BT[:, t : t + 1],
                cache,
            )
            for t in range(x_BTD.shape[1])
        ]
        return torch.cat(rows, dim=1)

    def _run(self, x_BTD: Tensor, positions_BS: Tensor, mask_BS: Tensor, kept: Any = None) -> Tensor:
        try:
            return self._as_called(x_BTD, positions_BS, mask_BS, kept)
        except (IndexError, RuntimeError) as error:
            places, tokens = self._frame.places, mask_BS.shape[1]
            if isinstance(error, RuntimeError) and (places is None or tokens <= places):
                raise  # of something else, such as memory
            fewer = "fewer places" if places is None else f"places for {places}"
            raise InputError(f"layer {self.index} cannot be run on {tokens} tokens: its model has {fewer}") from None

    def _as_called(self, x_BTD: Tensor, positions_BS: Tensor, mask_BS: Tensor, kept: Any) -> Tensor:
        T = x_BTD.shape[1]
        if isinstance(kept, Remembered):
            all_BSD = x_BTD.new_empty(()).expand(*mask_BS.shape, x_BTD.shape[2])
            call = self._frame.call(self.index, all_BSD, positions_BS, mask_BS, last=T)
            given = {**call.given, "remembered": kept}
        else:
            call = self._frame.call(self.index, x_BTD, positions_BS[:, -T:], mask_BS, kept)
            given = call.given
        self._frame.fill(self.index, self.layer, x_BTD.device)  # moving the module may have rounded or emptied them
        self.executed += 1
        y_BTD = returned(self.layer(**{call.first: x_BTD}, **given))
        if y_BTD.shape != x_BTD.shape:
            raise InputError(f"layer {self.index} makes {tuple(y_BTD.shape)} of {tuple(x_BTD.shape)}")
        return y_BTD


def _joined(before: Tensor | None, now: Tensor) -> Tensor:
    return now if before is None else torch.cat([before, now], dim=1)
