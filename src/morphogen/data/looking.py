"""What the text of an experiment is: sizes, splits, tokens, what stands in several sources, samples."""

from collections import Counter
from collections.abc import Iterator
from heapq import nsmallest
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from morphogen.data import store
from morphogen.data.document import digest_of
from morphogen.data.prepare import PreparedData, PreparedShard, prepare

if TYPE_CHECKING:
    from morphogen.experiment import Data, Shard

Role = Literal["shards", "eval_shards", "healing_shards"]
#: A sample of a document is so long, at most.
SAMPLE_CHARS: Final = 240


def looked_at(data: "Data", samples: int) -> dict[str, Any]:
    """Reads, splits and encodes the text as a run would, and says what it is. samples: documents shown of each source.

    Raises InputError as `prepare`.
    """
    prepared = prepare(data)
    sources = {source: told for role in _roles(data) for source, told in _of_role(prepared, data, role, samples)}
    return {
        "tokenizer": {"name": prepared.tokenizer, "vocab": prepared.vocab_size},
        "sources": sources,
        "overlap": overlap(prepared),
        "probes": {probe.label: {"lengths": list(probe.asked_at), "chance": probe.chance} for probe in prepared.probes},
        "notes": prepared.remarks(),
    }


def _roles(data: "Data") -> list[Role]:
    given: tuple[tuple[Role, bool], ...] = (
        ("shards", True),
        ("eval_shards", any(not shard.probe for shard in data.eval_shards)),
        ("healing_shards", bool(data.healing_shards)),
    )
    return [role for role, is_given in given if is_given]


def _of_role(prepared: PreparedData, data: "Data", role: Role, samples: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what a source is called here, what it is)."""
    given = {"shards": data.text_shards, "eval_shards": data.measured_shards, "healing_shards": data.healing_shards}[
        role
    ]
    ready = {"shards": prepared.shards, "eval_shards": prepared.eval_shards, "healing_shards": prepared.healing_shards}
    total = sum(shard.weight for shard in ready[role])
    for shard, asked in zip(ready[role], given, strict=True):
        yield f"{role}: {shard.name}", _told(prepared, shard, asked, shard.weight / total, samples)


def _told(prepared: PreparedData, shard: PreparedShard, asked: "Shard", share: float, samples: int) -> dict[str, Any]:
    tokens = sum(file.tokens - file.documents for file in shard.files.values())  # without ends of text
    return {
        "source": shard.source,
        "share": round(share, 4),
        "documents": shard.corpus.documents,
        "duplicates": shard.corpus.duplicates,
        "bytes": shard.corpus.n_bytes,
        "bytes_per_token": round(shard.corpus.n_bytes / tokens, 3) if tokens else None,
        "lost": shard.lost,
        "splits": {
            name: {
                "documents": file.documents,
                "tokens": file.tokens,
                "sequences": shard.windows(name, prepared.seq_len),
            }
            for name, file in shard.files.items()
        },
        "samples": sample(asked, samples),
    }


def overlap(prepared: PreparedData) -> list[dict[str, Any]]:
    """For every two texts in common: how many documents, and the share of each, by their shards' names. A text is told
    of once, however many roles it has. Never of one that is trained on and measured: equal texts fall into the same
    split, whatever the source."""
    texts: dict[tuple[str, ...], tuple[Role, PreparedShard]] = {}
    for role, shard in _shards(prepared):
        texts.setdefault(tuple(file.path for file in shard.files.values()), (role, shard))
    names = Counter(shard.name for _, shard in texts.values())
    found = {}
    for role, shard in texts.values():
        name = shard.name if names[shard.name] == 1 else f"{role}: {shard.name}"
        found[name] = np.unique(np.concatenate([file.document_hashes() for file in shard.files.values()]))
    told = []
    for (one, ones), (other, others) in combinations(found.items(), 2):
        if both := len(np.intersect1d(ones, others)):
            shares = {one: round(both / len(ones), 4), other: round(both / len(others), 4)}
            told.append({"documents": both, "share_of": shares})
    return told


def _shards(prepared: PreparedData) -> Iterator[tuple[Role, PreparedShard]]:
    yield from (("shards", shard) for shard in prepared.shards)
    yield from (("eval_shards", shard) for shard in prepared.eval_shards)
    yield from (("healing_shards", shard) for shard in prepared.healing_shards)


def sample(shard: "Shard", count: int) -> list[dict[str, Any]]:
    """The heads of a few documents, those with the lowest hashes: the same at every look."""
    if count == 0:
        return []
    found = nsmallest(
        count, filter(lambda one: one.text, store.stored_documents(shard)), lambda one: digest_of(one.text)
    )
    return [{"key": one.key, "characters": len(one.text), "head": one.text[:SAMPLE_CHARS]} for one in found]
