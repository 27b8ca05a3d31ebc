"""Batches: a pure function of (seed, step) over memory-mapped tokens.

A *window* is `seq_len` consecutive targets of one shard's split with the token before them; windows share no target.
Which shard a sequence comes from is a fixed table: in every block of `BLOCK` sequences each shard has its share to the
nearest sequence, spread evenly. Which window it is comes from a permutation per epoch, so that within an epoch no
window repeats. Probes stand after the shards of text, each as one more; their sequences are numbered, and made when
they are read. In those, −1 − i stands for token i where it is not scored as a target. Nothing is carried from step to
step, so any step can be asked for at any time.

Shapes: B sequences of a batch, S sequences asked for, T targets of a sequence (T1 is T + 1 tokens), W windows,
K = BLOCK, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphogen.data.prepare import PreparedData, PreparedShard
from morphogen.data.probes import Probe, scored_only
from morphogen.data.spelling import Ids
from morphogen.errors import InputError
from morphogen.sections.data import MIXED

Tokens = NDArray[np.unsignedinteger[Any]]
BLOCK: Final = MIXED
#: Of fewer documents than these a text's parts are its sequences: errors of so few tell little.
FEW_DOCUMENTS: Final = 16
#: Which stream a permutation belongs to.
_TRAIN, _HEALING, _EVAL = 0, 1, 2


class EvalBatch(NamedTuple):
    """`ids` of shape (B, T1), and how many bytes of text its targets (all but the first column) stand for.

    n_bytes_BT: of each target. part_BT: which part of the text it is of: the number of its document, or of its sequence
    where there are few documents.
    """

    ids: Ids
    n_bytes: int
    n_bytes_BT: Ids | None = None
    part_BT: Ids | None = None


class Trained(NamedTuple):
    """What one training has read: of the order of a seed so many steps, and healing steps, from step `first` on."""

    seed: int
    steps: int
    healing_steps: int = 0
    first: int = 0


class _Stream:
    """Sequences drawn from weighted shards, and the probes that have a weight, without end."""

    def __init__(
        self, shards: tuple[PreparedShard, ...], probes: Sequence[Probe], seq_len: int, entropy: tuple[int, ...]
    ) -> None:
        self.shards = shards
        self.probes = [probe for probe in probes if probe.weight > 0]
        self.seq_len = seq_len
        self.entropy = entropy
        self.n_windows = [shard.windows("train", seq_len) for shard in shards]
        weights = [shard.weight for shard in shards] + [probe.weight for probe in self.probes]
        self.shard_K, self.rank_K, self.per_block = _table(weights)
        self._order: dict[int, tuple[int, Ids]] = {}

    def windows(self, first: int, last: int) -> Ids:
        """(shard, window) of sequences `first` to `last`, the last left out: ids of shape (S, 2)."""
        sequence_S = np.arange(first, last)
        block_S, place_S = np.divmod(sequence_S, BLOCK)
        shard_S = self.shard_K[place_S]
        position_S = block_S * self.per_block[shard_S] + self.rank_K[place_S]
        window_S = np.empty_like(position_S)
        for shard in np.unique(shard_S):
            window_S[shard_S == shard] = self._windows_at(int(shard), position_S[shard_S == shard])
        return np.stack([shard_S, window_S], axis=1)

    def _windows_at(self, shard: int, position_S: Ids) -> Ids:
        """The windows at these positions of one shard's endless sequence of epochs; a probe has only one."""
        if shard >= len(self.shards):
            return position_S
        epoch_S, index_S = np.divmod(position_S, self.n_windows[shard])
        window_S = np.empty_like(position_S)
        for epoch in np.unique(epoch_S):
            window_S[epoch_S == epoch] = self.order(shard, int(epoch))[index_S[epoch_S == epoch]]
        return window_S

    def order(self, shard: int, epoch: int) -> Ids:
        """The windows of one shard in the order of this epoch; the last one asked for is kept."""
        kept = self._order.get(shard)
        if kept is None or kept[0] != epoch:
            rng = np.random.default_rng(np.random.SeedSequence((*self.entropy, shard, epoch)))
            kept = self._order[shard] = epoch, rng.permutation(self.n_windows[shard])
        return kept[1]

    def read(self, tokens: list[Tokens], first: int, last: int) -> Ids:
        """ids_ST1 of sequences `first` to `last`, the last left out, from each shard's training `tokens`."""
        windows_S2 = self.windows(first, last)
        ids_ST1 = np.empty((last - first, self.seq_len + 1), dtype=np.int64)
        for row, (shard, window) in enumerate(windows_S2.tolist()):
            if shard >= len(self.shards):
                probe = self.probes[shard - len(self.shards)]
                ids_ST1[row] = scored_only(probe.sequence(*self.entropy, shard, window))
            else:
                start = window * self.seq_len
                ids_ST1[row] = tokens[shard][start : start + self.seq_len + 1]
        return ids_ST1

    def count(self, n_sequences: int) -> Ids:
        """How many of the first `n_sequences` come from each shard, and then from each probe."""
        blocks, rest = divmod(n_sequences, BLOCK)
        return blocks * self.per_block + np.bincount(self.shard_K[:rest], minlength=len(self.per_block))


class Mixture:
    """The batches of one run. Memory maps are opened once, here."""

    def __init__(self, prepared: PreparedData, seed: int) -> None:
        self.prepared = prepared
        self._train = _stream(prepared, seed, _TRAIN)
        self._healing = _stream(prepared, seed, _HEALING) if prepared.healing_shards else None
        self._train_tokens = [shard.files["train"].open() for shard in prepared.shards]
        self._healing_tokens = [shard.files["train"].open() for shard in prepared.healing_shards]
        self._bytes_V = prepared.bytes_per_token()
        self._held_out: dict[tuple[str, str], tuple[Tokens, Tokens | None]] = {}
        self._document_ends: dict[tuple[str, str], Ids] = {}

    def batch(self, step: int) -> Ids:
        """ids_BT1 of a training step: inputs are all but the last column, targets all but the first.

        Those of a probe that are not scored are negative: −1 − id.
        """
        size = self.prepared.step_sequences
        return self._train.read(self._train_tokens, step * size, (step + 1) * size)

    def windows(self, first_step: int, last_step: int) -> Ids:
        """(position of the shard, window) of every sequence in steps `first_step` to `last_step`, the last left out."""
        size = self.prepared.step_sequences
        return self._train.windows(first_step * size, last_step * size)

    def healing_batch(self, step: int) -> Ids:
        """ids_BT1 of a healing step, from `healing_shards` and a stream of its own."""
        if self._healing is None:
            raise InputError("data.healing_shards: got none, expected at least one source to heal with")
        size = self.prepared.step_sequences
        return self._healing.read(self._healing_tokens, step * size, (step + 1) * size)

    def eval_batches(
        self,
        shard_name: str,
        eval_tokens: int,
        limit_batches: int | None = None,
        split: Literal["eval", "test"] = "eval",
    ) -> Iterator[EvalBatch]:
        """The first `eval_tokens` targets (whole sequences, at least one) of a held-out split, in a fixed shuffle.

        The order depends on nothing but the size of the split, so all candidates of all runs are measured on the same
        text, and a smaller measurement is the head of a larger one. The last batch may be smaller.
        """
        shard = self.prepared.eval_shard(shard_name)
        length, size = self.prepared.seq_len, self.prepared.batch_size
        n_windows = shard.windows(split, length)
        if n_windows == 0:
            raise InputError(f"eval shard {shard_name!r}: its {split} split is smaller than one sequence of {length}")
        tokens, counts = self._opened(shard, split)
        order_W = np.random.default_rng(_EVAL).permutation(n_windows)
        chosen_S = order_W[: max(1, min(n_windows, eval_tokens // length))]
        if limit_batches is not None:
            chosen_S = chosen_S[: limit_batches * size]
        offsets_T1 = np.arange(length + 1)
        ends = self._ends(shard, split)
        few = len(np.unique(np.searchsorted(ends, chosen_S * length))) < FEW_DOCUMENTS
        for first in range(0, len(chosen_S), size):
            rows_B = chosen_S[first : first + size]
            places_BT1 = rows_B[:, None] * length + offsets_T1
            ids_BT1 = tokens[places_BT1].astype(np.int64)
            bytes_BT = self._bytes_V[ids_BT1[:, 1:]] if counts is None else counts[places_BT1[:, 1:]].astype(np.int64)
            part_BT = np.repeat(rows_B[:, None], length, 1) if few else np.searchsorted(ends, places_BT1[:, 1:])
            yield EvalBatch(ids_BT1, int(bytes_BT.sum(dtype=np.int64)), bytes_BT, part_BT)

    def held(self) -> Ids:
        """ids_BT1 of one batch that is not trained on: the first of the first measured shard."""
        shard = self.prepared.eval_shards[0]
        (batch,) = self.eval_batches(shard.name, self.prepared.tokens_per_step, limit_batches=1)
        return batch.ids

    def _opened(self, shard: PreparedShard, split: Literal["eval", "test"]) -> tuple[Tokens, Tokens | None]:
        """A held-out split's tokens, and the bytes of each where the vocabulary does not tell."""
        found = self._held_out.get((shard.name, split))
        if found is None:
            file = shard.files[split]
            found = self._held_out[shard.name, split] = file.open(), file.open_counts() if file.counted else None
        return found

    def _ends(self, shard: PreparedShard, split: Literal["eval", "test"]) -> Ids:
        """Where the documents of a held-out split end: the places of their ends of text."""
        found = self._document_ends.get((shard.name, split))
        if found is None:
            tokens, _ = self._opened(shard, split)
            found = self._document_ends[shard.name, split] = np.flatnonzero(tokens == self.prepared.eot)
        return found


def unique_tokens(prepared: PreparedData, runs: Iterable[Trained | tuple[int, int]]) -> int:
    """Distinct training targets that these runs (seed, steps[, healing_steps[, first]]) have read between them; exact.

    Counted in windows of token files: a window that two runs, two shards of the same source, or training and healing
    have read counts once. A probe's sequences count whole, as often as they are different streams'.
    """
    seen: dict[str, NDArray[np.bool_]] = {}
    made: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for run in (Trained(*run) for run in runs):
        for steps, kind in ((run.steps, _TRAIN), (run.healing_steps, _HEALING)):
            if steps:
                stream = _stream(prepared, run.seed, kind)
                first, last = (
                    stream.count(step * prepared.step_sequences).tolist() for step in (run.first, run.first + steps)
                )
                _mark(stream, first, last, seen)
                for place in range(len(stream.shards), len(first)):
                    made.setdefault((*stream.entropy, place), []).append((first[place], last[place]))
    n_made = sum(_covered(spans) for spans in made.values())
    return prepared.seq_len * (sum(int(mask_W.sum()) for mask_W in seen.values()) + n_made)


def _mark(stream: _Stream, first: list[int], last: list[int], seen: dict[str, NDArray[np.bool_]]) -> None:
    """Marks the windows at each shard's positions `first` to `last`, the last left out, epoch by epoch."""
    for shard, source in enumerate(stream.shards):
        n_windows, position = stream.n_windows[shard], first[shard]
        mask_W = seen.setdefault(source.files["train"].path, np.zeros(n_windows, dtype=np.bool_))
        while position < last[shard] and not mask_W.all():
            epoch, index = divmod(position, n_windows)
            end = min(n_windows, index + last[shard] - position)
            mask_W[stream.order(shard, epoch)[index:end]] = True
            position += end - index


def _covered(spans: list[tuple[int, int]]) -> int:
    """How many numbers lie in at least one of the spans, each from its first number to before its last."""
    covered = reached = 0
    for first, last in sorted(spans):
        covered += max(0, last - max(first, reached))
        reached = max(reached, last)
    return covered


def _stream(prepared: PreparedData, seed: int, kind: int) -> _Stream:
    healing = kind == _HEALING
    shards, probes = (prepared.healing_shards, ()) if healing else (prepared.shards, prepared.probes)
    return _Stream(shards, probes, prepared.seq_len, (prepared.seed, seed, kind))


def _table(weights: Sequence[float]) -> tuple[Ids, Ids, Ids]:
    """(shard_K, rank_K, per_block): the shard of each place in a block, which of its shard's places it is, and totals.

    Shares are rounded to whole sequences by largest remainder, at least one each; the j-th of a shard's n places
    stands near (j + 1/2) / n of the block, so that every prefix keeps the shares too.
    """
    share = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    per_block = np.maximum(1, np.floor(share)).astype(np.int64)
    missing = BLOCK - int(per_block.sum())
    if missing > 0:
        per_block[np.argsort(per_block - share, kind="stable")[:missing]] += 1
    else:
        per_block[np.argmax(per_block)] += missing
    shards = np.repeat(np.arange(len(weights)), per_block)
    ranks = np.concatenate([np.arange(count) for count in per_block])
    order = np.argsort((ranks + 0.5) / per_block[shards], kind="stable")
    return shards[order], ranks[order], per_block
