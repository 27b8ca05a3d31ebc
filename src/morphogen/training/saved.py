"""What a training saves of itself to go on later as though it had never stopped: tensors by name, and plain JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from torch import Tensor


class Saved(NamedTuple):
    """tensors: copies or the things themselves, to be written at once. plain: strict JSON, None for what is no
    number."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]

    @classmethod
    def joined(cls, parts: "Mapping[str, Saved]") -> Self:
        """Several things' states as one; `part` takes them apart again."""
        tensors = {f"{name}/{key}": tensor for name, saved in parts.items() for key, tensor in saved.tensors.items()}
        return cls(tensors, {name: saved.plain for name, saved in parts.items()})

    def part(self, name: str) -> "Saved":
        """What was joined under this name. KeyError where nothing was."""
        prefix = f"{name}/"
        found = {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}
        return Saved(found, self.plain[name])
