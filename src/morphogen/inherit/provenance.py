"""What a checkpoint says of the text behind its weights: the tokenizer, its vocabulary, and how many tokens it took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from morphogen.candidate import DonorLayer, Tokens
from morphogen.errors import InputError
from morphogen.inherit.borrowed import donors_told, to_metadata
from morphogen.inherit.memory import memory_in
from morphogen.inherit.plan import Plan, PlannedAxis, TensorPlan
from morphogen.parts.contract.alignment import AxisMap

NO_TOKENS = Tokens(own=0, lineage=0, unique=0)
#: In the metadata of a seed: the candidate that it is, and what that descends from.
CONTINUES = "continues"
#: The axis of every tensor that has a row per token.
VOCAB = "vocab"


@dataclass(frozen=True)
class Provenance:
    """Carried in a checkpoint's metadata.

    tokenizer: the digest of its definition; None where the checkpoint does not say. name: what the experiment called
    it. vocabulary: packed, see `data.vocabulary`. tokens: behind these weights. begun: those of them that were behind
    the checkpoint from which the lineage began, counted in its own tokens. growth: what its rules of growth
    remember, as JSON; empty without rules. donors: layers of other models as they were when they were taken.
    """

    tokenizer: str | None = None
    name: str = ""
    vocabulary: str = ""
    tokens: Tokens = NO_TOKENS
    begun: Tokens = NO_TOKENS
    growth: str = ""
    donors: tuple[DonorLayer, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """Text by name, as safetensors keeps it."""
        return {
            "tokenizer": self.tokenizer or "",
            "tokenizer_name": self.name,
            "vocabulary": self.vocabulary,
            "tokens": self.tokens.model_dump_json(),
            "begun": self.begun.model_dump_json(),
            **({"growth_memory": self.growth} if self.growth else {}),
            **to_metadata(self.donors),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> Self:
        """Of the checkpoint at `path`, which may be one that says nothing. InputError for counts that are none."""
        try:
            tokens, begun = (
                Tokens.model_validate_json(metadata[name]) if name in metadata else NO_TOKENS
                for name in ("tokens", "begun")
            )
        except ValidationError as error:
            raise InputError(f"{path}: its counts of tokens cannot be read: {error.errors()[0]['msg']}") from None
        return cls(
            metadata.get("tokenizer") or None,
            metadata.get("tokenizer_name", ""),
            metadata.get("vocabulary", ""),
            tokens,
            begun,
            metadata.get("growth_memory", ""),
            donors_told(path, metadata),
        )

    def remembered(self, path: Path) -> str:
        """`growth`. InputError with the `path` of the checkpoint where no training can go on from it."""
        memory_in(self.growth, str(path))
        return self.growth


def check_tokenizers(digests: Sequence[str | None], names: Sequence[str]) -> None:
    """InputError where two of the parents called `names` were trained with different tokenizers, as far as is known."""
    known = [(digest, name) for digest, name in zip(digests, names, strict=False) if digest is not None]
    for digest, name in known:
        if digest != known[0][0]:
            raise InputError(
                f"{name} was trained with the tokenizer {digest}, {known[0][1]} with {known[0][0]}; weights are "
                "spliced only where an id means the same token in all"
            )


def with_tokens(drawn: Plan, index: Sequence[int], note: str) -> Plan:
    """The plan with row i of each table of tokens carried from row `index[i]` of the parent's, which is never exact.

    −1 is fresh: the mean of the rows that are carried, where any is. note: why it is not exact.
    """
    return drawn.model_copy(
        update={
            "tensors": tuple(_with_rows(item, tuple(index)) for item in drawn.tensors),
            "exact": False,
            "notes": (*drawn.notes, note),
        }
    )


def _with_rows(item: TensorPlan, index: tuple[int, ...]) -> TensorPlan:
    if item.source is None or not any(planned.axis == VOCAB for dim in item.dims for planned in dim):
        return item

    def mapped(planned: PlannedAxis) -> PlannedAxis:
        if planned.axis != VOCAB:
            return planned
        sizes = {"size": planned.take.size, "parent_size": planned.take.parent_size}
        return planned.model_copy(update={"take": AxisMap(how="index", index=index, **sizes)})

    mean = (*item.mean, VOCAB) if max(index) >= 0 else item.mean
    return item.model_copy(
        update={"dims": tuple(tuple(mapped(planned) for planned in dim) for dim in item.dims), "mean": mean}
    )
