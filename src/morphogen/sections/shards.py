"""A shard: one source of text or a recall probe, as it stands in `data.shards`, and what its figures are called."""

import hashlib
import re
import unicodedata
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from morphogen import plugins
from morphogen.errors import nearest
from morphogen.parts.contract.frozen import Frozen, PositiveWeight
from morphogen.sections.built_in import PROBES, built_in, forms
from morphogen.sections.values import changed

#: A probe; data/probes/ says what they are. No size is larger than a sequence can be long.
_PROBE = re.compile(r"probe:([^:]+)(?::([1-9][0-9]{0,7}))?")
#: What kinds of packages that have a size begin with.
_SIZE = 8


class ProbeName(NamedTuple):
    """Which kind of probe a source names, and of which size (0: the kind has none)."""

    kind: str
    size: int


def _metric_name(source: str) -> str:
    """The source as it stands in metric names: letters, marks and digits of any script in lower case, `_` between them.

    Where something that is not ASCII is lost by that (an emoji), or nothing is left, a hash keeps the name distinct.
    """
    text = unicodedata.normalize("NFC", source.rstrip("/").removeprefix("hf:"))
    kept = "".join(sign if _in_a_name(sign) else "_" for sign in text)
    name = re.sub("_+", "_", kept).strip("_").lower()
    if name and not any(before != after and not before.isascii() for before, after in zip(text, kept, strict=True)):
        return name
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{name or 'source'}_{digest}"


def _in_a_name(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


def _given_name(name: str) -> str:
    if not name.strip("_") or not all(sign == "_" or _in_a_name(sign) for sign in name):
        raise ValueError(f"got {name!r}, expected letters, digits and _, such as {_metric_name(name)!r}")
    return name


def _source(source: str) -> str:
    if not source.strip():
        raise ValueError(
            f"empty, expected {', '.join(forms())}, a file or folder, hf:NAME[:CONFIG], or probe:NAME[:SIZE]"
        )
    if source.startswith("probe:"):
        _check_probe(source)
    return source


def _check_probe(source: str) -> None:
    """ValueError for a probe that there is not, or a size that it has not."""
    found = _PROBE.fullmatch(source)
    name = found[1] if found else source.removeprefix("probe:").partition(":")[0]
    kinds = [*PROBES, *plugins.names(plugins.PROBES)]
    if name not in kinds and not plugins.only_looked_at():
        hint = f"; did you mean 'probe:{close}'?" if (close := nearest(name, kinds)) else ""
        raise ValueError(f"got {source!r}, expected probe:NAME with a name of {', '.join(sorted(kinds))}{hint}")
    ours = PROBES.get(name)
    if found is None or (found[2] and ours is not None and ours.size is None):
        size = (
            "" if ours is not None and ours.size is None else f", or with a size of at least 1, such as probe:{name}:8"
        )
        raise ValueError(f"got {source!r}, expected probe:{name}{size}")


_SOURCES = (
    f"{', '.join(f'`{form}`' for form in forms())}, a file or folder, `hf:NAME[:CONFIG]`, `probe:NAME[:SIZE]`, or a "
    "plug-in's corpus."
)


class Shard(Frozen):
    """One text source: a corpus that comes with morphogen, a file or folder (text, jsonl, parquet), `hf:NAME[:CONFIG]`,
    or `NAME[:ARGUMENTS]` of a corpus that an installed package offers; or `probe:NAME[:SIZE]`, sequences made on the
    spot that test one ability.

    A probe has none of the fields below but a name, a weight and lengths.
    """

    source: Annotated[str, AfterValidator(_source), Field(description=_SOURCES)]
    name: Annotated[str, AfterValidator(_given_name)] = ""
    """What its figures are called after (`ppl_<name>`); empty: the source as it is written, in small letters."""
    weight: PositiveWeight = 1.0
    """Share of training sequences, or of the means over held-out shards, relative to the other shards'."""
    split: str = "train"
    """Of a Hugging Face data set."""
    revision: str | None = None
    """Of a Hugging Face data set; null stays at the version first fetched."""
    cache_path: str | None = None
    """Folder of its tokens; null: the common cache."""
    max_documents: PositiveInt | None = None
    """Documents taken from the head of the source, so that a large data set need not be fetched whole; null: all."""
    text_field: Annotated[str, Field(min_length=1)] | None = None
    """The column of records that holds the text; null: `text`, or the only one that may be it."""
    on_error: Literal["fail", "skip"] = "fail"
    """`skip` leaves out records, texts and files that cannot be read, and counts them."""

    lengths: tuple[Annotated[int, Field(ge=8, le=2**20)], ...] = ()
    """Of a probe: the lengths at which it is asked, in tokens; none given: `data.seq_len`, that of training."""

    @model_validator(mode="after")
    def _all_is_read(self) -> Self:
        for name in sorted(self._unread.keys() & changed(self)):
            only = self._unread[name]
            raise ValueError(f"{name} is {dict(self)[name]!r}, but the source is {self.source!r} and only {only} one")
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            self.__dict__["name"] = self._name_of_source
        return self

    @model_serializer(mode="wrap")
    def _name_where_it_says_more(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return {key: value for key, value in found.items() if key != "name" or value != self._name_of_source}

    @property
    def _name_of_source(self) -> str:
        return _metric_name(self.source)

    @property
    def _unread(self) -> dict[str, str]:
        """Field that such a source has no use for -> which sources have one, as a message says it."""
        of_the_hub = self.source.startswith("hf:")
        unread = {} if of_the_hub else dict.fromkeys(("split", "revision"), "hf: sources have")
        if not of_the_hub and not self.is_local:
            unread |= dict.fromkeys(("text_field", "on_error"), "files and data sets have")
        if self.probe is not None:
            unread |= dict.fromkeys(("cache_path", "max_documents"), "text has")
        else:
            unread |= {"lengths": "probes have"}
        return unread

    @property
    def is_local(self) -> bool:
        """Whether the source is a file or folder of this machine."""
        return self.corpus is None and self.probe is None and not self._is_ours

    @property
    def _is_ours(self) -> bool:
        return self.source.startswith(("hf:", "probe:")) or built_in(self.source) is not None

    @property
    def corpus(self) -> tuple[str, str] | None:
        """The name of a corpus that an installed package offers, and what follows its colon; None for other sources."""
        name, _, arguments = self.source.partition(":")
        return None if self._is_ours or name not in plugins.names(plugins.CORPORA) else (name, arguments)

    @property
    def probe(self) -> ProbeName | None:
        """Which probe it is; None for text."""
        found = _PROBE.fullmatch(self.source)
        if found is None:
            return None
        ours = PROBES.get(found[1])
        usual = _SIZE if ours is None else ours.size or 0
        return ProbeName(found[1], int(found[2] or usual))

    @property
    def label(self) -> str:
        """What a probe's figures are called after: its name where one is given, else its kind."""
        if self.probe is None or self.name != self._name_of_source:
            return self.name
        return _metric_name(self.probe.kind)
