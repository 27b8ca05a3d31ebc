"""How the hand-written functions stand to torch's autocast, on any device, the meta device included."""

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype autocast computes in on `device` right now; None when it is off."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which dtypes are what they are."""
    return nullcontext() if autocast_dtype(device) is None else torch.autocast(device.type, enabled=False)
