"""Other ways to compute an op than its own: kernels of libraries, chosen by device, dtype and what is installed.

An op asks `kernel` before it goes its own way. A back end is tried at its first use, on small inputs of the same
widths, against the op's slow reference, forwards and backwards; one that is further off than the contract allows, or
fails, is refused with a warning, and the op goes its own way from then on.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morphogen.ops.autocast import no_autocast

#: Relative error (root mean square) that a tensor may have by dtype; other dtypes have no kernels.
BOUNDS: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 1e-2}

#: Widths and settings that a kernel is tried at; what they mean is the op's.
Sizes = tuple[Any, ...]


@dataclass(frozen=True)
class Backend:
    """A library's kernel behind an op.

    Attributes:
        name: As it is told.
        library: The module it needs; empty for torch alone.
        devices: Types of device that it runs on.
        run: Called like the op.
        trial: For sizes: the call to try it with (of inputs on the CPU in fp64), and how the reference is called.
        fits: Why such sizes over so many tokens are not for it; empty where they are.
        note: What it is good for.
    """

    name: str
    library: str
    devices: frozenset[str]
    run: Callable[..., Any]
    trial: Callable[[Sizes], "Trial"]
    fits: Callable[[Sizes, int], str]
    note: str = ""

    def missing(self) -> str:
        """Why it cannot be had here; empty where it can."""
        if self.library and importlib.util.find_spec(self.library) is None:
            return f"{self.library} is not installed (pip install 'morphogen[gpu]')"
        return ""


class Trial(NamedTuple):
    """Inputs in fp64 on the CPU, and how the kernel and the reference are called with them, or others like them.

    narrow: which of the inputs are in the dtype computed in; the others are in fp32.
    """

    inputs: tuple[Tensor, ...]
    narrow: tuple[bool, ...]
    kernel: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]


class Path(NamedTuple):
    """The way an op is computed, and why that one."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def kernel(
    backends: Sequence[Backend], device: torch.device, dtype: torch.dtype, tokens: int, sizes: Sizes
) -> Callable[..., Any] | None:
    """What computes such an op here instead of its own way; None for that."""
    for backend in backends:
        if device.type not in backend.devices or backend.missing() or backend.fits(sizes, tokens):
            continue
        if not trouble(backend, device, dtype, sizes):
            return backend.run
    return None


def chosen(backends: Sequence[Backend], device: torch.device, own: str, sizes: Sizes) -> Path:
    """The path of an op at the usual sizes, tried in the dtypes that are computed in, and why it is that one."""
    reasons = []
    for backend in backends:
        if device.type not in backend.devices:
            reasons.append(f"{backend.name} is for {', '.join(sorted(backend.devices))}")
        elif missing := backend.missing():
            reasons.append(missing)
        else:
            wrong = {dtype: trouble(backend, device, dtype, sizes) for dtype in (torch.bfloat16, torch.float32)}
            works = [str(dtype).removeprefix("torch.") for dtype, why in wrong.items() if not why]
            if works:
                return Path(backend.name, f"in {' and '.join(works)}; {own} elsewhere: {backend.note}".rstrip(": "))
            reasons.append(next(iter(wrong.values())))
    return Path(own, "; ".join(reasons) or f"the only one on {device.type}")


@functools.cache
def trouble(backend: Backend, device: torch.device, dtype: torch.dtype, sizes: Sizes) -> str:
    """Why a back end is not used on this device at these sizes, having tried it; empty where it is right.

    What is wrong is told once in a warning.
    """
    if dtype not in BOUNDS:
        return f"{backend.name} does not compute in {dtype}"
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(device):
            worst, bound = _tried(backend.trial(sizes), device, dtype), BOUNDS[dtype]
        wrong = "" if worst <= bound else f"its relative error is {worst:.1e}, more than {bound:.0e}"
    except Exception as error:  # whatever a library's kernel raises on this machine, it is said, and the op goes on
        wrong = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if wrong:
        wrong = f"{backend.name} in {str(dtype).removeprefix('torch.')} on {device}: {wrong}"
        warnings.warn(f"{wrong}; it is not used", RuntimeWarning, stacklevel=2)
    return wrong


def _tried(trial: Trial, device: torch.device, dtype: torch.dtype) -> float:
    """The worst relative error of outputs and gradients. Both sides are given the same, already rounded, inputs."""
    rounded = [x.to(dtype if narrow else torch.float32) for x, narrow in zip(trial.inputs, trial.narrow, strict=True)]
    given = [x.to(device).requires_grad_() for x in rounded]
    exact = [x.double().requires_grad_() for x in rounded]
    got, want = trial.kernel(*given), trial.reference(*exact)
    places = [i for i, y in enumerate(got) if y.requires_grad]  # a last state that nothing trains through may have none
    draw = torch.Generator().manual_seed(1)
    d_outs = [torch.randn(want[i].shape, generator=draw, dtype=torch.float64) for i in places]
    grads = torch.autograd.grad(
        [got[i] for i in places], given, [d.to(got[i]) for d, i in zip(d_outs, places, strict=True)]
    )
    wants = torch.autograd.grad([want[i] for i in places], exact, d_outs)
    pairs = zip((*got, *grads), (*want, *wants), strict=True)
    return max(_relative(y.detach().cpu().double(), true.detach()) for y, true in pairs)


def _relative(got: Tensor, want: Tensor) -> float:
    if not torch.isfinite(got).all():
        return float("inf")
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp(min=1e-30))
