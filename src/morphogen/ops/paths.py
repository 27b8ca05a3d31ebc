"""Which way every op is computed on a device, and why: what `explain` and `environment.json` tell."""

from collections.abc import Mapping
from typing import get_args

import torch

from morphogen.ops import cross_entropy
from morphogen.ops import recurrent_kernels as recurrent
from morphogen.ops.backends import Backend, Path, Sizes, chosen
from morphogen.ops.flex import FLEX, USUAL
from morphogen.ops.names import OpName
from morphogen.ops.routing import grouped_mm_works

#: Back ends of each op, and the sizes to try them at when nobody says which.
BACKENDS: Mapping[OpName, tuple[tuple[Backend, ...], Sizes]] = {
    "attention": ((FLEX,), USUAL),
    "linear_attention": ((recurrent.LINEAR,), recurrent.USUAL_LINEAR),
    "gated_delta": ((recurrent.DELTA,), recurrent.USUAL_LINEAR),
    "ssd": ((recurrent.SSD,), recurrent.USUAL_SSD),
    "selective_scan": ((recurrent.SCAN,), recurrent.USUAL_SCAN),
    "cross_entropy": ((cross_entropy.FUSED,), cross_entropy.USUAL),
}
#: The way of their own that ops have everywhere.
OWN: Mapping[OpName, str] = {
    "attention": "scaled_dot_product_attention or tiles, by length, dtype and pattern",
    "linear_attention": "matmuls in chunks",
    "gated_delta": "a triangular solve in chunks",
    "ssd": "matmuls in chunks",
    "selective_scan": "a loop over tokens in one function",
    "cross_entropy": "tiles of tokens, nothing kept but the logits",
}


def path(op: OpName, device: torch.device) -> Path:
    """The way of one op on a device. Where a library's kernel could take it, that is tried now."""
    if op == "experts":
        works = [dtype for dtype in (torch.float32, torch.bfloat16) if grouped_mm_works(device.type, dtype)]
        if not works:
            return Path("expert by expert", f"torch {torch.__version__} has no grouped matmul on {device.type}")
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in works)
        return Path("grouped_mm", f"it works in {names}; sizes that it does not take go expert by expert")
    if op == "none":
        return Path("torch", "there is no other")
    backends, sizes = BACKENDS.get(op, ((), ()))
    return chosen(backends, device, OWN[op], sizes)


def paths(device: torch.device) -> dict[str, str]:
    """Of every op, in words."""
    return {op: str(path(op, device)) for op in get_args(OpName) if op != "none"}
