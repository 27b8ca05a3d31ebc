"""Which way the kinds of a blueprint are computed on a device: what `explain` and `environment.json` tell."""

import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.ops.paths import path


def kernels_of(blueprint: Blueprint, device: torch.device) -> dict[str, str]:
    """By kind of part that there are several ways to compute: which one, and why."""
    parts = {part.label: part.op() for block in blueprint.blocks for _, _, part in block.parts()}
    return {kind: str(path(op, device)) for kind, op in parts.items() if op != "none"}
