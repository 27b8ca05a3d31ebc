"""The device that computes: which one, whether it still answers, and whether an error is its memory's."""

import torch

from morphogen.errors import InputError, unknown


def choose_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for the best there is. InputError for what this machine lacks."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(unknown("device", name, ["auto", "cpu", "cuda", "cuda:0", "mps"]))
    if kind == "cuda" and not int(index or 0) < torch.cuda.device_count():
        raise InputError(f"device: got {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: got 'mps', but this machine has none")
    return torch.device(name)


def device_for(name: str, *, elsewhere: bool) -> torch.device:
    """As `choose_device`; elsewhere: whether other machines compute, so that `cuda` need not be here."""
    return torch.device(name) if elsewhere and name == "cuda" else choose_device(name)


def is_here(device: torch.device) -> bool:
    """Whether this machine has any of the device's kind."""
    return device.type != "cuda" or torch.cuda.device_count() > 0


def answers(device: str) -> bool:
    """Whether this process can compute on the device. After some errors an accelerator refuses a process for good."""
    if device == "cpu":
        return True
    try:
        return torch.ones(2, device=choose_device(device)).sum().item() == 2.0
    except (InputError, RuntimeError) as error:
        return out_of_memory(error)


def cuda_memory() -> list[tuple[int, int] | None]:
    """Of every CUDA device of this process the memory that is free and that there is, in bytes; None where it does not
    answer. Asking takes some of it, for as long as the process lives."""
    found: list[tuple[int, int] | None] = []
    for k in range(torch.cuda.device_count()):
        try:
            found.append(torch.cuda.mem_get_info(k))
        except RuntimeError:
            found.append(None)
    return found


def out_of_memory(error: BaseException) -> bool:
    """Python's, an accelerator's, or the CPU allocator's, which torch raises as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
