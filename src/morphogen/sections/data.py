"""`data`: text, tokens and batches."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag, model_validator

from morphogen.parts.contract.frozen import Frozen
from morphogen.parts.contract.registry import TAG
from morphogen.sections.built_in import PROBES
from morphogen.sections.shards import Shard
from morphogen.sections.values import Share, changed


class BPE(Frozen):
    """A byte-level BPE trained on the training split and cached by content."""

    kind: Literal["bpe"] = "bpe"
    """A byte-level BPE."""
    vocab: Annotated[int, Field(ge=257, le=1_000_000)] = 4096
    """Tokens, the 256 bytes included."""


class Split(Frozen):
    """Shares of documents by hash. What is left of 1 is the test split, which nothing here trains on or selects by."""

    train: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Share of documents to train on."""
    eval: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of documents to measure candidates by."""

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if self.train + self.eval > 1.0:
            raise ValueError(f"train + eval is {self.train + self.eval}, expected at most 1")
        return self


def _tokenizer_tag(value: Any) -> str:
    return TAG + ("bpe" if isinstance(value, Mapping | BPE) else "name")


def _measured(shard: Shard) -> Shard:
    if shard.probe is not None and "weight" in changed(shard):
        raise ValueError(f"weight is {shard.weight:g}, but a probe that is only measured has no part in any mean")
    return shard


#: Names that no shard may have: `bpb_<name>` is something else.
_TAKEN = frozenset({"sample", "inherited"})


def _check_names(field: str, shards: Iterable[Shard]) -> None:
    """ValueError where figures would bear the name of others: those of another shard, or of what is no shard."""
    sources: dict[str, str] = {}
    for shard in shards:
        if shard.name in sources:
            raise ValueError(
                f"{field}: {sources[shard.name]!r} and {shard.source!r} share the name {shard.name!r}, which "
                f"figures are named after; give one of them another, such as name: {shard.name}_2"
            )
        if shard.name in _TAKEN:
            raise ValueError(
                f"{field}: {shard.source!r} has the name {shard.name!r}, but bpb_{shard.name} is another "
                f"figure; give it a name, such as name: {shard.name}_text"
            )
        sources[shard.name] = shard.source


#: Sequences that have a share of every training shard among them, to the nearest whole one.
MIXED: Final = 4096


def _check_shares(field: str, shards: tuple[Shard, ...]) -> None:
    """ValueError for a shard that would have less than one sequence of so many, and so more than its share."""
    total = sum(shard.weight for shard in shards)
    for shard in shards:
        if shard.weight * MIXED < total * (1 - 1e-9):
            least = 1.01 * (total - shard.weight) / (MIXED - 1)
            raise ValueError(
                f"{field}: {shard.source!r} has the weight {shard.weight:g} of {total:g} in all, less than one of "
                f"{MIXED:,} sequences; leave it out, or give it at least {least:.3g}"
            )


def _same_probe(shard: Shard, other: Shard) -> bool:
    return shard.probe == other.probe and (not other.lengths or shard.lengths == other.lengths)


class Data(Frozen):
    """Text, tokens and batches."""

    tokenizer: Annotated[
        Annotated[BPE, Tag(TAG + "bpe")] | Annotated[str, Tag(TAG + "name")], Discriminator(_tokenizer_tag)
    ] = "bytes"
    """`bytes`, a tokenizer by name, file or folder, or a BPE to train on the training split."""
    allow_loss: Share = 0.0
    """Share of a source's characters that the tokenizer may fail to spell."""
    seq_len: Annotated[int, Field(ge=8, le=2**24)] = 256
    """Tokens of a sequence."""
    batch_size: PositiveInt = 8
    """Sequences of a batch; a training step takes `train.accumulate` of them."""
    seed: NonNegativeInt = 0
    """Of the order of sequences."""
    split: Split = Split()
    """Shares of documents."""
    shards: Annotated[tuple[Shard, ...], Field(min_length=1)] = (Shard(source="stdlib-code"),)
    """Text to train on. A probe among it is trained on at its weight and measured apart from the text."""
    eval_shards: tuple[Annotated[Shard, AfterValidator(_measured)], ...] = ()
    """Text whose eval split is measured; empty: that of `shards`. A probe among it is only measured."""
    healing_shards: tuple[Shard, ...] = ()
    """Text that a child begins with where the splice of its weights was not exact, for `healing_tokens`."""
    healing_tokens: NonNegativeInt = 0
    """Tokens of `healing_shards` at the start of such a child's training."""
    eval_tokens: PositiveInt = 65_536
    """Held-out tokens of every shard, at most."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for field in ("shards", "eval_shards"):
            _check_names(field, dict(self)[field])
        for field in ("shards", "healing_shards"):
            _check_shares(field, dict(self)[field])
        return self

    @model_validator(mode="after")
    def _healing(self) -> Self:
        if self.healing_tokens and not self.healing_shards:
            raise ValueError("healing_tokens is set, but there are no healing_shards")
        return self

    @model_validator(mode="after")
    def _probes(self) -> Self:
        if not self.text_shards:
            raise ValueError("shards: there are only probes, expected at least one source of text")
        if any(shard.probe for shard in self.healing_shards):
            raise ValueError("healing_shards: a probe does not heal, expected sources of text")
        for field in ("shards", "eval_shards"):
            labels = [shard.label for shard in dict(self)[field] if shard.probe]
            if repeated := sorted({label for label in labels if labels.count(label) > 1}):
                said = f"{field}: several probes are called {repeated[0]!r}, which figures are named after"
                raise ValueError(f"{said}; give one of them another name")
        for shard in self.shards:
            for other in self.eval_shards:
                if shard.probe and other.probe and shard.label == other.label and not _same_probe(shard, other):
                    both = f"{shard.source!r} and {other.source!r}"
                    raise ValueError(
                        f"shards, eval_shards: got {both} for the probe {shard.label!r}, expected one probe of a name, "
                        "of one size and with the same lengths"
                    )
        kinds = [shard.probe.kind for shard in self.probes if shard.probe]
        for kind, probe in PROBES.items():
            if probe.figure and kinds.count(kind) > 1:
                raise ValueError(
                    f"shards, eval_shards: got two probes {kind}, expected one, whose figure is {probe.figure}"
                )
        return self

    @property
    def text_shards(self) -> tuple[Shard, ...]:
        """The training shards that are text."""
        return tuple(shard for shard in self.shards if shard.probe is None)

    @property
    def probes(self) -> tuple[Shard, ...]:
        """The probes, each from `shards` where it is among them."""
        found = {shard.label: shard for shard in self.eval_shards + self.shards if shard.probe is not None}
        return tuple(found.values())

    @property
    def recall(self) -> Shard | None:
        """The recall probe, mqar; None when there is none."""
        return next((shard for shard in self.probes if shard.probe and shard.probe.kind == "mqar"), None)

    @property
    def measured_shards(self) -> tuple[Shard, ...]:
        """The text that metrics are reported on, each shard with its weight in their means."""
        given = tuple(shard for shard in self.eval_shards if shard.probe is None)
        return given or tuple(shard.model_copy(update={"weight": 1.0}) for shard in self.text_shards)
