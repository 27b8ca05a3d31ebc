"""Bits per byte divide by the bytes of the text, whatever the tokenizer."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, byte_level_bpe, characters_bpe, llama, roberta, suffix_bpe, word_piece
from torch import Tensor, nn

from examples import up_to
from morphogen.data.document import digest_of
from morphogen.data.mixture import EvalBatch, Mixture
from morphogen.data.prepare import prepare
from morphogen.data.spelling import Ids, Loss, bytes_of_tokens
from morphogen.data.store import TokenFile, split_of
from morphogen.data.tokenizers import ByteTokenizer, PieceTokenizer, Tokenizer
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError
from morphogen.experiment import Data, Split
from morphogen.metrics.perplexity import score_batches

WORDS = ["the", "cat", "naïve", "été", "δέλτα", "日本語", "東京", "😀", "👍🏽", "a,b", "(x)", "ate", "ten", "o'er"]
TEXT = " ".join(WORDS * 3)
HALVES = Split(train=0.5, eval=0.5)
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


def documents(count: int) -> list[str]:
    """Distinct documents of the words above, a space between two."""
    rng = random.Random(0)
    return [" ".join(rng.choice(WORDS) for _ in range(30)) for _ in range(count)]


class Uniform(nn.Module):
    """Predicts every token alike."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(torch.zeros(vocab, dtype=torch.float64))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.logits_V.expand(*ids_BT.shape, -1)


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_uniform_predictions_have_the_analytic_bits_per_byte(kind: str) -> None:
    """bpb = log2(V) · tokens / bytes of the text."""
    tokenizer: Tokenizer = ByteTokenizer() if kind == "bytes" else PieceTokenizer(KINDS[kind]([TEXT]))
    [spelled] = tokenizer.spell_batch([TEXT])
    assert min(one.wrong for one in spelled.losses) == 0
    n_bytes, vocab = len(TEXT.encode()), tokenizer.vocab_size
    assert spelled.n_bytes.sum() == n_bytes
    ids_1T = np.array([[tokenizer.eot, *spelled.ids]])
    [score] = score_batches(Uniform(vocab), [EvalBatch(ids_1T, int(spelled.n_bytes.sum()))])
    wanted = math.log2(vocab) * len(spelled.ids) / n_bytes
    print(f"| {kind} | {vocab} | {len(spelled.ids)} | {n_bytes} | {score.bpb:.9f} | {wanted:.9f} |")
    assert score.bpb == pytest.approx(wanted, rel=1e-9)
    assert abs(tokenizer.bytes_per_token[spelled.ids].sum() - n_bytes) <= 1  # the space before or after all


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_held_out_windows_divide_by_the_bytes_of_the_documents(
    kind: str, data: Callable[..., Data], tmp_path: Path
) -> None:
    """All but the first token of the split, which nothing predicts, and what does not fill a window."""
    texts = documents(12)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    name = "bytes"
    if kind != "bytes":
        name = str(tmp_path / "tokenizer.json")
        KINDS[kind](texts).save(name)
    changes = {
        "tokenizer": name,
        "shards": [{"source": str(tmp_path / "t.jsonl")}],
        "split": HALVES,
    }
    short = prepare(data(**changes, seq_len=8))
    held_out = short.eval_shards[0].files["eval"]
    n_targets = held_out.tokens - 1
    prepared = prepare(data(**changes, seq_len=n_targets, batch_size=1))  # one window of all
    [batch] = Mixture(prepared, 0).eval_batches(prepared.eval_shards[0].name, 10**9)
    total = sum(len(text.encode()) for text in texts if split_in(text, HALVES) == "eval")
    first = int(held_out.open_counts()[0]) if held_out.counted else int(short.bytes_per_token()[batch.ids[0, 0]])
    assert 0 <= first <= 12
    assert batch.n_bytes == total - first
    [score] = score_batches(Uniform(prepared.vocab_size), [batch])
    wanted = math.log2(prepared.vocab_size) * n_targets / (total - first)
    assert score.bpb == pytest.approx(wanted, rel=1e-9)
    windows = list(Mixture(short, 0).eval_batches(short.eval_shards[0].name, 10**9))
    left = n_targets % 8
    tail = 0 if not left else sum(counted(held_out, short.bytes_per_token())[-left:])
    assert sum(window.n_bytes for window in windows) == total - first - tail
    assert held_out.counted == (kind not in ("bytes", "byte-level BPE", "byte-level BPE without decoder"))
    if held_out.counted:
        assert counted(held_out, short.bytes_per_token())[held_out.open() == prepared.eot].sum() == 0


def split_in(text: str, split: Split) -> str:
    return split_of(digest_of(text), split)


def counted(file: TokenFile, table_V: Ids) -> Ids:
    return file.open_counts().astype(np.int64) if file.counted else table_V[file.open()]


@pytest.mark.parametrize("kind", list(KINDS))
@given(text=any_text)
@settings(max_examples=up_to(25), deadline=None)
def test_bytes_add_up_for_any_text_and_losses_are_noticed(kind: str, text: str) -> None:
    tokenizer = TRAINED[kind]
    [spelled] = tokenizer.spell_batch([text])
    assert spelled.n_bytes.sum() == (len(text.encode()) if len(spelled.ids) else 0)
    assert (spelled.n_bytes >= 0).all()
    if tokenizer.is_byte_exact:
        assert tokenizer.decode(spelled.ids) == text or not tokenizer._has_decoder
        [spans] = tokenizer._encoded([text])
        assert bytes_of_tokens(text, spans.offsets, spelled.n_bytes, gaps_before=False).sum() == len(text.encode())


TRAINED = {kind: PieceTokenizer(build([TEXT])) for kind, build in KINDS.items()}


def counts(pieces: tokenizers.Tokenizer, text: str) -> list[int]:
    [spelled] = PieceTokenizer(pieces).spell_batch([text])
    return spelled.n_bytes.tolist()


def test_each_token_has_the_bytes_that_it_stands_for() -> None:
    assert counts(suffix_bpe(["ab cd"] * 9), "ab  cd ab") == [4, 3, 2]  # the spaces belong to the word they end
    assert counts(word_piece(["ab cd"] * 9), " ab  cd") == [3, 4]  # and to the word they stand before
    assert counts(llama([]), "té") == [1, 1, 1]  # the prefix space is not of the text
    assert counts(roberta(["x é"] * 3), "é  x") == [2, 1, 2]
    assert counts(characters_bpe(["ab"] * 9), "zab") == [3]  # what was dropped counts with what follows


def test_tokens_that_share_characters_share_their_bytes() -> None:
    hints = np.array([2, 1, 1])
    assert bytes_of_tokens("a😀", [(0, 1), (1, 2), (1, 2)], hints[[1, 0, 0]], gaps_before=False).tolist() == [1, 2, 2]
    assert bytes_of_tokens("😀", [(0, 1)] * 3, hints, gaps_before=False).tolist() == [2, 1, 1]
    assert bytes_of_tokens("😀", [(0, 1)] * 3, np.array([5, 5, 5]), gaps_before=False).tolist() == [1, 1, 2]
    assert bytes_of_tokens("  é", [(2, 3), (2, 3)], np.array([1, 1]), gaps_before=False).tolist() == [3, 1]
    assert bytes_of_tokens("ab", [], hints[:0], gaps_before=False).tolist() == []


def refused(
    data: Callable[..., Data], pieces: tokenizers.Tokenizer, texts: list[str], tmp_path: Path, **more: object
) -> str:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pieces.save(str(tmp_path / "tokenizer.json"))
    source = {"source": str(tmp_path / "t.jsonl")}
    with pytest.raises(InputError) as raised:
        prepare(data(tokenizer=str(tmp_path / "tokenizer.json"), shards=[source], **more))
    return str(raised.value)


def test_a_tokenizer_that_cannot_spell_the_text_is_refused_with_what_it_loses(
    data: Callable[..., Data], tmp_path: Path
) -> None:
    texts = documents(40)
    unknown = refused(data, word_piece(["the cat ate ten"]), texts, tmp_path)
    assert "its tokens do not spell the text of" in unknown
    assert "data.allow_loss (now 0)" in unknown
    assert "'é' " in unknown
    lower = byte_level_bpe(texts)
    lower.normalizer = tokenizers.normalizers.Lowercase()
    capitals = [f"{text} THE End" for text in texts]
    assert "('E' 80 times, 'H' 40 times, 'T' 40 times)" in refused(data, lower, capitals, tmp_path)
    lines = [text.replace(" ", "\n", 3) for text in texts]
    assert r"('\n' 120 times)" in refused(data, suffix_bpe(texts), lines, tmp_path)
    assert " times" in refused(data, characters_bpe(["the cat"]), texts, tmp_path)  # what it does not know, it drops


def test_a_loss_that_is_allowed_still_divides_by_the_bytes_of_the_text_and_is_recorded(
    data: Callable[..., Data], tmp_path: Path
) -> None:
    lines = [text.replace(" ", "\n", 3) for text in documents(40)]
    refused(data, suffix_bpe(lines), lines, tmp_path, allow_loss=0.001)
    source = {"source": str(tmp_path / "t.jsonl")}
    prepared = prepare(data(tokenizer=str(tmp_path / "tokenizer.json"), shards=[source], allow_loss=0.05, seq_len=8))
    [shard] = prepared.environment()["corpora"]["shards"]
    assert shard["lost"] == pytest.approx(120 / sum(map(len, lines)))
    total = sum(int(prepared.shards[0].files[split].open_counts().sum()) for split in ("eval", "test"))
    assert total == sum(len(text.encode()) for text in lines if split_in(text, Split(train=0.6, eval=0.2)) != "train")


def test_a_text_of_unknown_tokens_alone_is_an_error_whatever_is_allowed(
    data: Callable[..., Data], tmp_path: Path
) -> None:
    texts = documents(40)
    for pieces in (word_piece(["ÿÿ"]), characters_bpe(["ÿÿ"])):
        assert "it knows no token of the text" in refused(data, pieces, texts, tmp_path, allow_loss=1.0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_end_of_text_that_text_is_encoded_to_is_a_loss_and_its_bytes_count(kind: str) -> None:
    """Else documents would end in the middle, and bits per byte divide by too few bytes."""
    pieces = KINDS[kind]([TEXT])
    [ids_N] = PieceTokenizer(pieces).encode_batch([TEXT])
    used = sorted(set(ids_N.tolist()))
    for eot in used[:: len(used) // 6]:
        tokenizer = PieceTokenizer(pieces, eot)
        [spelled] = tokenizer.spell_batch([TEXT])
        assert spelled.n_bytes.sum() == len(TEXT.encode())
        assert all(loss.wrong >= 1 and loss.known == sum(ids_N != eot) for loss in spelled.losses)
    spare = next(i for i in range(pieces.get_vocab_size()) if i not in used)
    [before], [after] = (PieceTokenizer(pieces, eot).spell_batch([TEXT]) for eot in (None, spare))
    assert min(loss.wrong for loss in before.losses) == min(loss.wrong for loss in after.losses)
    assert np.array_equal(before.n_bytes, after.n_bytes)


def test_losses_add_up() -> None:
    one = Loss(10, 2, 3, {"a": 2}) + Loss(10, 0, 4)
    assert (one.characters, one.wrong, one.known, one.share) == (20, 2, 7, 0.1)
    assert one.told() == "10 % of its characters ('a' 2 times)"


def test_a_vocabulary_comes_back_and_maps_by_text() -> None:
    old, new = TRAINED["byte-level BPE"], ByteTokenizer()
    mine, other = Vocabulary(new.pieces, new.eot), Vocabulary(old.pieces, old.eot)
    assert Vocabulary.unpack(other.pack(), "here") == other
    index = mine.index_in(other, 300)
    assert all(other.pieces[i] == piece for i, piece in zip(index, mine.pieces, strict=False) if piece)
    assert (index[new.eot], index[257:]) == (old.eot, [-1] * 43)
    for broken in ("", "x", "eJw=", Vocabulary((), 0).pack()[:-9]):
        with pytest.raises(InputError, match="here: its vocabulary cannot be read"):
            Vocabulary.unpack(broken, "here")
