"""What plain records are made of: their base, and kinds of names, text and numbers that they hold. No torch here."""

import base64
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field

from morphogen.documented import Documented
from morphogen.escape import whole_characters

#: How the file of an optimizer's moments, which stands beside a checkpoint, ends.
MOMENTS_SUFFIX = ".optimizer.safetensors"


def moments_path(checkpoint: Path) -> Path:
    """Where the optimizer's moments that belong to a checkpoint lie: beside it."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".safetensors") + MOMENTS_SUFFIX)


#: What stands behind the id of a finalist whose learning rate was brought down to zero.
ANNEALED = "~annealed"
#: What a candidate may be called, and hence its files: never a path, hidden, or too long a name for one.
CandidateId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+~=-]*$", max_length=200)]
#: Where a candidate's weights lie below the run's folder: never outside it.
CheckpointPath = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.+~=-]*/)*[A-Za-z0-9_][A-Za-z0-9_.+~=-]*$", max_length=300)
]
#: What a program that proposes candidates may be called.
ProposerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$", max_length=60)]
#: Words, which may tell of names that are no text.
Words = Annotated[str, AfterValidator(whole_characters)]


def _can_be_unpacked(text: str) -> str:
    """The text itself. ValueError where `estimates.unpacked` has one."""
    if len(base64.b64decode(text, validate=True)) % 4:
        raise ValueError("not a whole number of 32-bit floats")
    return text


#: Packed as `estimates.packed` does.
Influence = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$"), AfterValidator(_can_be_unpacked)]
#: A number that files and tables can hold.
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Record(Documented):
    """Base of all plain records: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def replace(self, **changes: Any) -> Self:
        """A validated copy with `changes`."""
        return type(self).model_validate({**dict(self), **changes})
