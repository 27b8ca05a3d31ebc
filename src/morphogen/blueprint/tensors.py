"""Every tensor of a blueprint's model, without making one. No torch: plans and costs need none."""

import math

from morphogen.blueprint.schema import Blueprint, Gene
from morphogen.parts.contract.frozen import remembered
from morphogen.parts.contract.tensors import Spec, moments


def specs(blueprint: Blueprint) -> dict[str, tuple[Gene, str, Spec]]:
    """Every tensor of the model by its name in the state dict: its gene, its name within the part, its spec."""
    return dict(_specs(blueprint))


@remembered
def _specs(blueprint: Blueprint) -> dict[str, tuple[Gene, str, Spec]]:
    return {
        gene.tensor(name): (gene, name, spec)
        for gene in blueprint.genes()
        for name, spec in gene.part.specs(gene.ctx).items()
    }


def borrowed_count(blueprint: Blueprint) -> int:
    """Entries of what is always as another model has it."""
    return sum(math.prod(spec.shape) for _, _, spec in specs(blueprint).values() if spec.borrowed)


@remembered
def parameter_count(blueprint: Blueprint) -> int:
    """Trainable parameters; a tied head counts once."""
    tables = (gene.part.specs(gene.ctx) for gene in blueprint.genes())
    return sum(math.prod(spec.shape) for table in tables for spec in table.values() if spec.trained)


@remembered
def moment_count(blueprint: Blueprint, optimizer: str) -> int:
    """Numbers that an optimizer keeps for all trainable parameters."""
    table = [spec for _, _, spec in specs(blueprint).values() if spec.trained]
    return sum(math.prod(spec.shape) * moments(spec, optimizer) for spec in table)
