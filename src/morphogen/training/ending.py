"""That guards ended a training early, as its checkpoints tell it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from morphogen.candidate import Record, StopReason
from morphogen.errors import InputError
from morphogen.experiment import Train

#: In a checkpoint's metadata.
KEY = "ended"
#: What of `train` decides when they end one.
GUARDS = (
    "entropy_threshold",
    "entropy_patience",
    "instability_threshold",
    "no_improve_patience",
    "improvement_tolerance",
)


class Ending(Record):
    """reason: the name of a `StopReason` in small letters. guards: how they were set."""

    reason: Literal["high_grad", "low_entropy", "no_improve"]
    guards: dict[str, float]

    @classmethod
    def of(cls, stop: StopReason, train: Train) -> Self:
        """Of a training with these settings."""
        return cls.model_validate({"reason": stop.name.lower(), "guards": _set(train)})

    @classmethod
    def told(cls, metadata: Mapping[str, str], path: Path) -> Self | None:
        """That of the checkpoint at `path`; None where no guard ended its training. InputError where it is damaged."""
        if KEY not in metadata:
            return None
        try:
            return cls.model_validate_json(metadata[KEY])
        except ValidationError:
            raise InputError(f"{path}: why its training ended cannot be read") from None

    @property
    def stop(self) -> StopReason:
        """Which guard it was."""
        return StopReason[self.reason.upper()]

    def holds(self, train: Train) -> bool:
        """Whether the guards are set as they were then, so that they would end it again."""
        return self.guards == _set(train)

    def to_metadata(self) -> dict[str, str]:
        """As a checkpoint has it."""
        return {KEY: self.model_dump_json()}


def _set(train: Train) -> dict[str, float]:
    return {name: float(dict(train)[name]) for name in GUARDS}
