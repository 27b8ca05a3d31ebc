"""An experiment: model + train + data + evolution in one YAML file.

Every field here is read by something; unknown names are refused. See docs/experiments.md for what each one means.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from morphogen.blueprint.schema import Blueprint
from morphogen.experiment.data import BPE, Data, Split
from morphogen.experiment.evolution import OBJECTIVES, Crossing, Evolution, Proposer
from morphogen.experiment.shards import Shard
from morphogen.experiment.train import RATE_FOUND, Optimizer, Train
from morphogen.figures import Direction
from morphogen.parts.contract.frozen import Frozen

__all__ = [
    "BPE",
    "RATE_FOUND",
    "Crossing",
    "Data",
    "Evolution",
    "Experiment",
    "Optimizer",
    "Proposer",
    "Shard",
    "Split",
    "Train",
]


class Experiment(Frozen):
    """One experiment file."""

    model: Blueprint
    """The architecture that the search begins with: the root."""
    train: Train = Train()
    """How a candidate is trained."""
    data: Data = Data()
    """Text, tokens and batches."""
    evolution: Evolution = Evolution()
    """The search."""

    @model_validator(mode="after")
    def _recall(self) -> Self:
        """With a probe in the data, recall is among the objectives that a file leaves to the defaults."""
        if self.data.probe is not None and "objectives" not in self.evolution.model_fields_set:
            objectives: dict[str, Direction] = {**OBJECTIVES, "long_recall": "max"}
            self.__dict__["evolution"] = self.evolution.model_copy(update={"objectives": objectives})
        return self

    def with_train(self, fields: Mapping[str, Any]) -> Self:
        """The same, trained with other `fields` of `train`, as a candidate's edits may ask."""
        if not fields:
            return self
        return self.model_copy(update={"train": Train.model_validate({**dict(self.train), **fields})})
