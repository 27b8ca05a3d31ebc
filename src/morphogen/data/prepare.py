"""From the `data` section of an experiment to token files on disk, and the small record of them that jobs carry."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from morphogen.data import store, tokenizers
from morphogen.data.cache import cache_folder, cached, read_checked, shard_folder, write_checked
from morphogen.data.document import Account
from morphogen.data.probes import Probe
from morphogen.data.records import TEXT_COLUMN
from morphogen.data.spelling import Ids, Loss
from morphogen.data.store import Corpus, SplitName, TokenFile
from morphogen.data.tokenizers import Tokenizer, byte_lengths
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError, RunError, unknown
from morphogen.paths import user_path
from morphogen.store.files import remove_stale

if TYPE_CHECKING:
    from morphogen.experiment import BPE, Data, Shard

#: A BPE is trained on about this many bytes of text per id of its vocabulary: 4 MiB for 4096 ids.
SAMPLE_BYTES_PER_ID: Final = 1024


@dataclass(frozen=True)
class PreparedShard:
    """One source, encoded. weight: in training, or in the means over held-out text. files: one entry per split.

    lost: the share of its characters that the tokens do not spell.
    """

    name: str
    source: str
    weight: float
    corpus: Corpus
    files: dict[SplitName, TokenFile]
    lost: float = 0.0

    def windows(self, split: SplitName, seq_len: int) -> int:
        """How many sequences of `seq_len` targets the split holds; they share no target."""
        return max(0, self.files[split].tokens - 1) // seq_len


@dataclass(frozen=True)
class PreparedData:
    """Text made ready: paths, counts and hashes, a few kilobytes that can be pickled into a job.

    batch_size: sequences of a batch, of which a step takes `accumulate`. vocab_size counts end of text (`eot`).
    tokenizer_digest and the shards' `corpus.digest` fix text and ids.
    """

    vocab_size: int
    eot: int
    tokenizer: str
    tokenizer_digest: str
    vocabulary_path: str
    seq_len: int
    batch_size: int
    seed: int
    eval_tokens: int
    shards: tuple[PreparedShard, ...]
    eval_shards: tuple[PreparedShard, ...]
    healing_shards: tuple[PreparedShard, ...]
    probes: tuple[Probe, ...]
    accumulate: int = 1

    @property
    def step_sequences(self) -> int:
        """Sequences that one step of the optimizer trains on."""
        return self.batch_size * self.accumulate

    @property
    def tokens_per_step(self) -> int:
        """Targets that it trains on."""
        return self.seq_len * self.step_sequences

    @property
    def eval_weights(self) -> dict[str, float]:
        """Measured shard -> its weight in `ppl` and `bpb`."""
        return {shard.name: shard.weight for shard in self.eval_shards}

    def eval_shard(self, name: str) -> PreparedShard:
        """The measured shard of that name; InputError names the others."""
        for shard in self.eval_shards:
            if shard.name == name:
                return shard
        raise InputError(unknown("eval shard", name, [shard.name for shard in self.eval_shards]))

    def bytes_per_token(self) -> Ids:
        """bytes_V: how many bytes of text each id stands for; 0 for end of text.

        That is what counts in texts of byte-exact tokenizers; the files of all others are `counted`. RunError as
        `vocabulary`, and where its file is damaged.
        """
        try:
            return byte_lengths(Vocabulary.unpack(self.vocabulary(), f"vocabulary {self.vocabulary_path}").pieces)
        except InputError as error:
            raise RunError(f"{error}; the cache was changed since the data was prepared") from None

    def vocabulary(self) -> str:
        """The tokenizer's vocabulary, packed. RunError when its file is not there."""
        try:
            return Path(self.vocabulary_path).read_text(encoding="latin-1")
        except OSError as error:
            raise RunError(
                f"vocabulary {self.vocabulary_path}: cannot be read: {error.strerror}; the cache was changed since the "
                "data was prepared"
            ) from None

    def file_paths(self) -> list[str]:
        """All the files that a candidate reads."""
        shards = self.shards + self.eval_shards + self.healing_shards
        files = [file for shard in shards for file in shard.files.values()]
        return [self.vocabulary_path, *(path for file in files for path in file.paths)]

    def measured_tokens(self) -> dict[str, int]:
        """Measured shard -> how many tokens of it are: `eval_tokens`, in whole sequences, or all that its split has."""
        length = self.seq_len
        return {
            shard.name: max(1, min(shard.windows("eval", length), self.eval_tokens // length)) * length
            for shard in self.eval_shards
        }

    def accounts(self) -> dict[str, Account]:
        """Source -> how it was read; with the shard's name where a source was read in several ways."""
        shards = self.shards + self.eval_shards + self.healing_shards
        several = {
            one.source
            for one, other in combinations(shards, 2)
            if one.source == other.source and one.corpus != other.corpus
        }
        return {
            f"{shard.source} ({shard.name})" if shard.source in several else shard.source: shard.corpus.account
            for shard in shards
        }

    def remarks(self) -> list[str]:
        """What the user should know of the text: what of it was left out, and measured on less than was asked for."""
        left = [
            f"text of {source!r}: {account}"
            for source, account in self.accounts().items()
            if account.left_out or set(account.columns) - {TEXT_COLUMN}
        ]
        return left + self.shortfalls()

    def shortfalls(self) -> list[str]:
        """The held-out texts that are shorter than `eval_tokens`."""
        measured = self.measured_tokens()
        return [
            f"data.eval_tokens is {self.eval_tokens:,}, but the eval split of {shard.source!r} has only "
            f"{shard.files['eval'].tokens:,}: it is measured on {measured[shard.name]:,}"
            for shard in self.eval_shards
            if measured[shard.name] < self.eval_tokens - self.seq_len
        ]

    def read(self) -> dict[str, Any]:
        """How the text was read, as `environment.json` tells it."""
        accounts = {source: asdict(account) for source, account in self.accounts().items()}
        return {"accounts": accounts, "measured_tokens": self.measured_tokens()}

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says of the data: enough to tell whether two runs read the same text."""
        return {
            "tokenizer": {"name": self.tokenizer, "vocab_size": self.vocab_size, "digest": self.tokenizer_digest},
            "corpora": {
                role: [_summary(shard) for shard in shards]
                for role, shards in (
                    ("shards", self.shards),
                    ("eval_shards", self.eval_shards),
                    ("healing_shards", self.healing_shards),
                )
            },
        }


def text_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What of an `environment` decides the ids that are read: not where the text and the tokenizer lie."""
    corpora = environment["corpora"].items()
    return {
        "tokenizer": {name: value for name, value in environment["tokenizer"].items() if name != "name"},
        "corpora": {
            role: [{name: value for name, value in shard.items() if name != "source"} for shard in shards]
            for role, shards in corpora
        },
    }


def check_reachable(data: "Data") -> None:
    """InputError where text or a tokenizer is still to be fetched, and the hub cannot be asked for it."""
    if isinstance(data.tokenizer, str):
        tokenizers.check_reachable(data.tokenizer)
    for shard in (*data.text_shards, *data.measured_shards, *data.healing_shards):
        with _placed(data, shard):
            store.check_reachable(shard)


def prepare(data: "Data", accumulate: int = 1, tokenizer: Tokenizer | None = None) -> PreparedData:
    """Read, split and encode what `data` names, or find it in the cache.

    accumulate: batches of a training step. tokenizer: that which `data` names, where its file is yet to be written.

    Raises InputError for a missing or unreadable source, a split too small for one sequence, a tokenizer that does not
    exist, text that it cannot spell, text that stands in both training and held-out splits, a probe that does not fit
    into a sequence, or a cache that cannot be written, or lies in the text.
    """
    texts = data.text_shards + data.measured_shards + data.healing_shards
    folders = {cache_folder(), *map(shard_folder, texts)}
    for text in texts:
        with _placed(data, text):
            _check_apart(text, folders)
    for folder in folders:
        remove_stale(folder)
    tokenizer = tokenizer_of(data) if tokenizer is None else tokenizer
    done: dict[str, tuple[Corpus, dict[SplitName, TokenFile], float]] = {}

    def prepared(shard: "Shard") -> PreparedShard:
        identity = shard.model_dump_json(exclude={"name", "weight"})
        if identity not in done:
            with _placed(data, shard):
                corpus = store.survey(shard)
                files, loss = store.token_files(shard, corpus, data.split, tokenizer)
            _check_spelled(data, shard, loss)
            done[identity] = corpus, files, loss.share
        return PreparedShard(shard.name, shard.source, shard.weight, *done[identity])

    ready = PreparedData(
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        tokenizer=_tokenizer_name(data),
        tokenizer_digest=tokenizer.digest,
        vocabulary_path=_vocabulary_path(tokenizer),
        seq_len=data.seq_len,
        batch_size=data.batch_size,
        seed=data.seed,
        eval_tokens=data.eval_tokens,
        shards=tuple(prepared(shard) for shard in data.text_shards),
        eval_shards=tuple(prepared(shard) for shard in data.measured_shards),
        healing_shards=tuple(prepared(shard) for shard in data.healing_shards),
        probes=tuple(_probes(data, tokenizer.vocab_size)),
        accumulate=accumulate,
    )
    for shard in ready.shards + ready.healing_shards:
        _check_size(shard, "train", data, f"data.split.train (now {data.split.train})")
    for shard in ready.eval_shards:
        _check_size(shard, "eval", data, f"data.split.eval (now {data.split.eval})")
    _check_overlap(ready)
    return ready


def _check_apart(shard: "Shard", folders: set[Path]) -> None:
    """InputError where files of the cache would become text of this shard. What is hidden in a folder is not read."""
    text = user_path(shard.source, f"data source {shard.source!r}").resolve() if shard.is_local else None
    for folder in folders:
        if text is None or not folder.resolve().is_relative_to(text) or not text.is_dir():
            continue
        if not any(part.startswith(".") for part in folder.resolve().relative_to(text).parts):
            raise InputError(
                f"data source {shard.source!r}: the cache folder {folder} lies in it, which it would change; set "
                "MORPHOGEN_CACHE or data.shards[].cache_path to a folder elsewhere"
            )


@contextmanager
def _placed(data: "Data", shard: "Shard") -> Iterator[None]:
    """An InputError inside is told with the place that the shard has in the experiment."""
    try:
        yield
    except InputError as error:
        for field in ("shards", "eval_shards", "healing_shards"):
            for i, other in enumerate(dict(data)[field]):
                if (other.name, other.source) == (shard.name, shard.source):
                    raise InputError(f"data.{field}[{i}].source: {error}") from error
        raise


def _probes(data: "Data", vocab_size: int) -> Iterator[Probe]:
    trained = {shard.label for shard in data.shards if shard.probe is not None}
    for shard in data.probes:
        if shard.probe is not None:
            weight = shard.weight if shard.label in trained else 0.0
            kind, size = shard.probe
            yield Probe(size, weight, data.seq_len, vocab_size, kind, shard.label, shard.lengths)


def _check_spelled(data: "Data", shard: "Shard", loss: Loss) -> None:
    """InputError for text that the tokenizer loses more of than is allowed, or of which it knows nothing at all."""
    place = f"data.tokenizer {_tokenizer_name(data)!r}"
    if loss.characters and not loss.known:
        raise InputError(f"{place}: it knows no token of the text of {shard.source!r}: {loss.told()}")
    if loss.share > data.allow_loss:
        raise InputError(
            f"{place}: its tokens do not spell the text of {shard.source!r}: they lose {loss.told()}, so that bits per "
            "byte would be of another text; use another tokenizer, or allow the loss with data.allow_loss "
            f"(now {data.allow_loss:g})"
        )


def _check_size(shard: PreparedShard, split: SplitName, data: "Data", option: str) -> None:
    if shard.windows(split, data.seq_len) > 0:
        return
    found, account = shard.files[split], shard.corpus.account
    read = f" (read were {account})" if account.left_out else ""
    raise InputError(
        f"data source {shard.source!r}: its {split} split has {found.documents} of {shard.corpus.documents} distinct "
        f"documents and {found.tokens} tokens, and one sequence needs {data.seq_len + 1}{read}; add documents, raise "
        f"{option}, or lower data.seq_len"
    )


def _check_overlap(data: PreparedData) -> None:
    """No text may be trained on and measured on, in whatever shards it stands."""

    def hashes(shards: tuple[PreparedShard, ...], splits: tuple[SplitName, ...]) -> NDArray[np.uint64]:
        return np.concatenate([shard.files[split].document_hashes() for shard in shards for split in splits])

    trained = hashes(data.shards + data.healing_shards, ("train",))
    held_out = hashes(data.shards + data.eval_shards + data.healing_shards, ("eval", "test"))
    if len(common := np.intersect1d(trained, held_out)):
        raise InputError(f"data: {len(common)} documents stand in a training and a held-out split; clear the cache")


def _summary(shard: PreparedShard) -> dict[str, Any]:
    tokens = {name: file.tokens for name, file in shard.files.items()}
    corpus = {name: value for name, value in asdict(shard.corpus).items() if name != "account"}
    found = {"name": shard.name, "source": shard.source, **corpus, "tokens": tokens}
    return {**found, "lost": shard.lost} if shard.lost else found


# -- tokenizers


def _tokenizer_name(data: "Data") -> str:
    return data.tokenizer if isinstance(data.tokenizer, str) else f"bpe-{data.tokenizer.vocab}"


def tokenizer_of(data: "Data") -> Tokenizer:
    """The tokenizer of an experiment's data; a BPE comes from the cache, or is trained on the training text."""
    if not isinstance(data.tokenizer, str):
        return _bpe(data, data.tokenizer)
    return tokenizers.named(data.tokenizer)


def _bpe(data: "Data", spec: "BPE") -> Tokenizer:
    """The BPE of these shards' training splits, from the cache or trained now."""
    corpora = [store.survey(shard) for shard in data.text_shards]
    decides = [spec.vocab, SAMPLE_BYTES_PER_ID, data.split.train, [corpus.digest for corpus in corpora]]
    weights = [shard.weight for shard in data.text_shards]
    key = hashlib.blake2b(json.dumps([decides, weights]).encode(), digest_size=16).hexdigest()
    path = cache_folder() / f"bpe-{store.FORMAT}-{key}.json"
    if (known := read_checked(path)) is not None:
        return tokenizers.from_json(known["tokenizer"])
    trained = tokenizers.train_bpe(_training_sample(data, corpora, spec.vocab * SAMPLE_BYTES_PER_ID), spec.vocab)
    write_checked(path, {"tokenizer": trained.to_json()})
    return trained


def _training_sample(data: "Data", corpora: list[Corpus], sample_bytes: int) -> Iterator[str]:
    """About `sample_bytes` of training text, shared among the shards by weight; hashes decide which documents."""
    total_weight = sum(shard.weight for shard in data.text_shards)
    for shard, corpus in zip(data.text_shards, corpora, strict=True):
        available = corpus.n_bytes * data.split.train
        share = sample_bytes * shard.weight / total_weight / available if available else 1.0
        for document in store.distinct(store.stored_documents(shard)):
            if store.split_of(document.decides_split, data.split) == "train" and store.sampled(document.digest, share):
                yield document.text


def _vocabulary_path(tokenizer: Tokenizer) -> str:
    """The file of the packed vocabulary, written unless it is there and right."""
    packed = Vocabulary(tokenizer.pieces, tokenizer.eot).pack().encode()
    path = cache_folder() / f"vocabulary-{store.FORMAT}-{tokenizer.digest}.txt"
    if not _holds(path, packed):
        with cached(path) as file:
            file.write(packed)
    return str(path.absolute())


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False
