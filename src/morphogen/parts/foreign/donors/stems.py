"""What stands before and behind the layers of another model: its embedding and its head, run as that model runs them.

B batch, T tokens, D model dim, V vocabulary
"""

import inspect
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.errors import InputError
from morphogen.parts.foreign.donors.frame import MASK, Reached, Stop, flat, moved, remade, seats_for
from morphogen.parts.foreign.donors.names import Names


class Blank(nn.Module):
    """Stands where the embedding stood, whose outcome is not wanted."""

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """What it is given, or nothing."""
        first: Tensor = next(each for each in (*given, *named.values()) if isinstance(each, Tensor))
        return first if first.is_floating_point() else first.new_zeros((), dtype=torch.get_default_dtype())


class DonorEmbedding(nn.Module):
    """Tokens to the residual stream that the first layer is given: learned positions, norms and scales are in it."""

    def __init__(self, model: Any, path: str, names: Names) -> None:
        """Reads its weights. InputError for those that are missing.

        Args:
            model: The model on the meta device, with its layers.
            path: The name of the list of its layers.
            names: Where its tensors are.
        """
        super().__init__()
        self.model, self._stop = emptied(model, path)
        fill(self.model, embedding_names(model, path), names)
        self._takes = inspect.signature(self.model.base_model.forward).parameters
        self._offset = self._first_position() if "position_ids" in self._takes else 0

    def _first_position(self) -> int:
        """What the model itself calls the position of a first token."""
        padding = self.model.config.pad_token_id
        ids_BT = torch.full((1, 2), 1 if padding == 0 else 0)
        own = self._run(ids_BT, None, torch.ones_like(ids_BT))
        for start in range(2 + (padding or 0)):
            positions_BT = torch.arange(start, start + 2)[None]
            if torch.equal(own, self._run(ids_BT, positions_BT, torch.ones_like(ids_BT))):
                return start
        raise InputError("positions of the embedding count from where no position is")

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """The residual stream (B, T, D).

        Args:
            ids_BT: Tokens.
            positions_BT: Where they stand, from 0; by default one after the other.
            mask_BT: True where a token is one and no padding; by default all are.
        """
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT.long()
        return self._run(ids_BT, positions_BT.expand(ids_BT.shape) + self._offset, mask_BT)

    def _run(self, ids_BT: Tensor, positions_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
        given = {"input_ids": ids_BT, MASK: mask_BT, "position_ids": positions_BT, "use_cache": False}
        try:
            self.model.base_model(**{name: value for name, value in given.items() if name in self._takes})
        except Reached as reached:
            found: Tensor = reached.hidden
            return found
        raise LookupError("no layer was run")


class DonorHead(nn.Module):
    """The residual stream behind the last layer to logits: final norm, projection, scale and cap are in it."""

    def __init__(self, model: Any, returns: int | None, path: str, names: Names) -> None:
        """Reads its weights. InputError for those that are missing, as where a checkpoint holds no head.

        Args:
            model: The model on the meta device, with its layers.
            returns: How many things they return, None for a tensor by itself.
            path: The name of the list of its layers.
            names: Where its tensors are.
        """
        super().__init__()
        self.width = int(model.get_input_embeddings().weight.shape[1])
        self.model, self._stop = emptied(model, path)
        before = embedding_names(model, path)
        for name in sorted({name.rpartition(".")[0] for name in before}):
            self.model.set_submodule(name, Blank())
        self._stop.returns = returns
        self._stop.index = len(self.model.get_submodule(path)) - 1
        fill(self.model, [name for name, _ in self.model.named_parameters(remove_duplicate=False)], names)
        self._takes = inspect.signature(self.model.forward).parameters
        with torch.no_grad():
            self(torch.zeros(1, 1, int(model.config.hidden_size)))  # whether it can be run by itself

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        self._stop.out = x_BTD
        embeds = x_BTD.new_zeros(*x_BTD.shape[:2], self.width)
        positions_BT = torch.arange(x_BTD.shape[1], device=x_BTD.device).expand(x_BTD.shape[:2])
        given = {
            "inputs_embeds": embeds,
            MASK: torch.ones_like(positions_BT),
            "position_ids": positions_BT,
            "use_cache": False,
        }
        try:
            out = self.model(**{name: value for name, value in given.items() if name in self._takes})
        finally:
            self._stop.out = None
        logits: Tensor = out.logits
        return logits


def emptied(model: Any, path: str) -> tuple[Any, Stop]:
    """A copy with seats for layers, and tables that follow from the config on the CPU."""
    layers = model.get_submodule(path)
    model.set_submodule(path, nn.ModuleList())
    try:
        own = deepcopy(model)
    finally:
        model.set_submodule(path, layers)
    stop = Stop()
    own.set_submodule(path, seats_for(layers, stop))
    for module in own.modules():
        remade(model, module, torch.device("cpu"))
    return own, stop


def embedding_names(model: Any, path: str) -> list[str]:
    """The names of the weights that a model reads before its first layer: those of the modules that run."""
    own, _ = emptied(model, path)
    ran: list[str] = []
    for name, module in own.named_modules():
        for weight, _ in list(module.named_parameters(recurse=False)):
            flat(module, weight, 0.0, torch.float32, torch.device("cpu"))
            module.register_forward_pre_hook(lambda _module, _given, full=f"{name}.{weight}": ran.append(full))
    takes = inspect.signature(own.base_model.forward).parameters
    given = {"input_ids": torch.zeros(1, 1, dtype=torch.long), MASK: torch.ones(1, 1, dtype=torch.long)}
    try:
        own.base_model(**{name: value for name, value in given.items() if name in takes})
    except Reached:
        return sorted(set(ran))
    raise LookupError("no layer was run")


def fill(model: Any, wanted: Iterable[str], names: Names) -> None:
    """Reads weights, in fp32; what else a model has is taken out of it."""
    found = names.read(list(wanted))
    for name, module in model.named_modules():
        for weight in [each for each, _ in module.named_parameters(recurse=False)]:
            full = f"{name}.{weight}" if name else weight
            kept = moved(found[full], torch.device("cpu")).float() if full in found else None
            module.register_parameter(weight, None if kept is None else nn.Parameter(kept))
