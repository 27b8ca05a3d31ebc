"""`train.compile`: blocks, or whole models, through torch's compiler, in steps of training alone.

What is compiled is kept for the process by torch, block by block: candidates whose blocks have the same shape compile
nothing anew. Frames that the compiler cannot take run as they are.
"""

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor

from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.network import LanguageModel
from morphogen.training.device import is_here

#: Shapes of one piece of code, and of all that it calls, before the compiler would give up on it.
MOST_SHAPES, MOST_IN_ALL = 256, 4096
#: They tell of every frame that runs as it is.
TALKATIVE = ("torch._dynamo", "torch._subclasses.fake_tensor")


def check_compiles(train: Train, device: torch.device) -> None:
    """InputError where `train.compile` asks for what cannot work on this machine; found out by compiling a little,
    where it has the device."""
    if train.compile != "none" and is_here(device) and (why := trouble(device)):
        raise InputError(f"train.compile: got {train.compile!r}, but nothing can be compiled here: {why}")


@functools.cache
def trouble(device: torch.device) -> str:
    """Why torch's compiler does not work on a device; empty where it does."""
    if device.type == "mps":
        return "torch's compiler is not relied on for mps"
    try:
        _sample(device)
    except Exception as error:  # no C++ compiler, no Triton, no headers, ...: whatever it is, it is said
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ""


def _sample(device: torch.device) -> None:
    """Compiles one product and a sine, backwards too."""
    x = torch.ones(4, 4, device=device, requires_grad=True)
    torch.compile(lambda x: (x @ x).sin().sum())(x).backward()


def forward_of(model: LanguageModel, mode: str) -> Callable[[Tensor], Tensor]:
    """Token ids to logits, as `mode` asks. A model with recurrences takes another number of steps as training goes on,
    so that only its blocks are compiled."""
    if mode == "none":
        return model
    config = torch._dynamo.config
    config.suppress_errors = True
    config.recompile_limit, config.accumulated_recompile_limit = MOST_SHAPES, MOST_IN_ALL
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if mode == "model" and not model.blueprint.recurrences:
        whole: Callable[[Tensor], Tensor] = torch.compile(model)
        return whole
    blocks: list[Callable[[Tensor], Tensor]] = [torch.compile(block) for block in model.blocks]
    return lambda ids_BT: model.forward_by(ids_BT, blocks)
