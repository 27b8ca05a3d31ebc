"""Modules made without numbers take tensors as their own."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn


def filled(module: nn.Module, state: Mapping[str, Tensor], trained: Collection[str]) -> bool:
    """What `module.load_state_dict(state, assign=True)` does, in a small part of its time: children are many.

    trained: names of the parameters that get a gradient. False where names or shapes are not those of the module, of
    which some may then be filled.
    """
    unset = dict.fromkeys(state)
    for path, each in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for holder in (each._parameters, each._buffers):
            for name, old in holder.items():
                if old is None or name in each._non_persistent_buffers_set:
                    continue
                full = prefix + name
                tensor = state.get(full)
                if tensor is None or tensor.shape != old.shape:
                    return False
                unset.pop(full, None)
                holder[name] = _parameter(tensor, full in trained) if holder is each._parameters else tensor
    return not unset


def _parameter(tensor: Tensor, trained: bool) -> nn.Parameter:
    """The tensor itself, not a copy."""
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=trained)
    parameter.requires_grad_(trained)
    return parameter
