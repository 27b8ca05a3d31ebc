"""What surrounds a computation in torch: nothing of it gets into what is made here, whatever a notebook has set."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

#: Kinds of devices that autocast may be on for.
KINDS = ("cpu", "cuda", "mps")


@contextmanager
def as_usual() -> Iterator[None]:
    """Within, torch is as a fresh process has it: fp32 and the CPU by default, gradients, no autocast, no inference
    mode. What was set before is set again after it."""
    before, cpu = torch.get_default_dtype(), torch.device("cpu")
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(_no_autocast())
        if torch.get_default_device() != cpu:  # a mode, which costs every call of torch within it some time
            undo.enter_context(cpu)
        if before != torch.float32:
            torch.set_default_dtype(torch.float32)
            undo.callback(torch.set_default_dtype, before)
        yield


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Out of every autocast. Merely within a disabled one, weights that another within it has cast would stay as they
    were at the first step: they are forgotten at the end of the outermost one."""
    on = [kind for kind in KINDS if torch.is_autocast_enabled(kind)]
    depth = torch.autocast_increment_nesting() - 1
    torch.clear_autocast_cache()
    for kind in on:
        torch.set_autocast_enabled(kind, False)
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for kind in on:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()
