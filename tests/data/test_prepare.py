import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from morphogen.data import prepare as prepare_module
from morphogen.data import store, tokenizers
from morphogen.data.prepare import prepare
from morphogen.data.tokenizers import train_bpe
from morphogen.errors import InputError
from morphogen.experiment import BPE, Data, Shard, Split


def failure(data: Data) -> str:
    with pytest.raises(InputError) as raised:
        prepare(data)
    return str(raised.value)


def test_prepared_data_is_small_picklable_and_repeatable(data: Callable[..., Data]) -> None:
    prepared = prepare(data())
    raw = pickle.dumps(prepared)
    assert len(raw) < 4096
    assert pickle.loads(raw) == prepared == prepare(data())
    assert (prepared.vocab_size, prepared.eot) == (257, 256)
    assert prepared.bytes_per_token().tolist() == [1] * 256 + [0]
    assert prepared.tokens_per_step == 64
    assert [shard.name for shard in prepared.eval_shards] == [shard.name for shard in prepared.shards]


def test_environment_names_the_text_by_its_hash(data: Callable[..., Data]) -> None:
    chosen = data()
    first = prepare(chosen).environment()
    json.dumps(first)
    [shard] = first["corpora"]["shards"]
    assert shard["documents"] == 60
    assert sum(shard["tokens"].values()) == shard["n_bytes"] + shard["documents"]  # one end of text each
    (Path(chosen.shards[0].source) / "0000.txt").write_text("another text")
    second = prepare(chosen).environment()
    assert second["corpora"]["shards"][0]["digest"] != shard["digest"]
    assert second["tokenizer"] == first["tokenizer"] == {
        "name": "bytes",
        "vocab_size": 257,
        "digest": "bytes-256-eot",
    }  # fmt: skip


def test_bpe_is_trained_on_the_training_split_alone_and_cached(
    data: Callable[..., Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = data(tokenizer=BPE(vocab=300), split=Split(train=0.5, eval=0.25))
    seen: list[str] = []

    def spied(texts: list[str], vocab: int) -> object:
        seen.extend(texts)
        return train_bpe(seen, vocab)

    monkeypatch.setattr(tokenizers, "train_bpe", spied)
    prepared = prepare(chosen)
    assert prepared.vocab_size == 300
    assert len(seen) == prepared.shards[0].files["train"].documents
    trained_bytes = sum(len(text.encode()) for text in seen)
    ids = prepared.shards[0].files["train"].open()
    assert prepared.bytes_per_token()[ids].sum() == trained_bytes
    assert prepare(chosen) == prepared
    assert len(seen) == prepared.shards[0].files["train"].documents  # not trained twice


def test_a_large_corpus_is_sampled_for_the_bpe(data: Callable[..., Data], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "SAMPLE_BYTES_PER_ID", 10)
    chosen = data(tokenizer=BPE(vocab=300))
    corpora = [store.survey(shard) for shard in chosen.shards]
    sample = list(prepare_module._training_sample(chosen, corpora, 4000))
    assert sample == list(prepare_module._training_sample(chosen, corpora, 4000))
    assert 1000 < sum(len(text.encode()) for text in sample) < 9000
    assert 2 < len(sample) < 30


def test_equal_texts_in_two_shards_are_held_out_together(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    one, other = Path(folder("one")), Path(folder("other", documents=20))
    for path in one.iterdir():
        (other / f"copy-{path.name}").write_bytes(path.read_bytes())
    prepared = prepare(data(shards=[{"source": str(one)}, {"source": str(other)}]))
    held_out = np.concatenate([shard.files["eval"].document_hashes() for shard in prepared.shards])
    trained = np.concatenate([shard.files["train"].document_hashes() for shard in prepared.shards])
    assert len(set(held_out.tolist())) < len(held_out)  # the copies are there
    assert not set(held_out.tolist()) & set(trained.tolist())


def test_an_overlap_is_an_error(data: Callable[..., Data], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(data())
    train = prepared.shards[0].files["train"].document_hashes()
    monkeypatch.setattr(store.TokenFile, "document_hashes", lambda file: train[:3])
    assert failure(data()) == "data: 3 documents stand in a training and a held-out split; clear the cache"


def test_a_split_without_documents_says_what_to_change(data: Callable[..., Data], folder: Callable[..., str]) -> None:
    few = folder("few", documents=3)
    message = failure(data(shards=[{"source": few}], split=Split(train=0.999, eval=0.0005)))
    assert message.startswith(
        f"data source {few!r}: its eval split has 0 of 3 distinct documents and 0 tokens, and one"
    )
    assert message.endswith("raise data.split.eval (now 0.0005), or lower data.seq_len")
    message = failure(data(shards=[{"source": few}], split=Split(train=0.0005, eval=0.999)))
    assert "its train split has 0 of 3 distinct documents" in message
    assert "raise data.split.train (now 0.0005)" in message


def test_a_sequence_longer_than_the_split_is_an_error(data: Callable[..., Data]) -> None:
    assert "and one sequence needs 100001" in failure(data(seq_len=100_000))


def test_measured_shards_need_no_training_split_and_are_found_by_name(
    data: Callable[..., Data], folder: Callable[..., str]
) -> None:
    prepared = prepare(data(eval_shards=[{"source": folder("held")}]))
    assert prepared.eval_shard(prepared.eval_shards[0].name) == prepared.eval_shards[0]
    name = prepared.eval_shards[0].name
    with pytest.raises(
        InputError, match=rf"eval shard '{name}x': got|eval shard: got '{name}x', expected one of {name}"
    ):
        prepared.eval_shard(f"{name}x")


def test_held_out_weights_are_those_given_and_no_training_weights(
    data: Callable[..., Data], folder: Callable[..., str]
) -> None:
    own, held = folder("own"), folder("held")
    given = prepare(data(eval_shards=[{"source": own}, {"source": held, "weight": 3}])).eval_weights
    assert list(given.values()) == [1.0, 3.0]
    trained = prepare(data(shards=[Shard(source=own, weight=5.0), Shard(source=held)])).eval_weights
    assert list(trained.values()) == [1.0, 1.0]


def test_cache_path_keeps_a_shard_elsewhere(
    data: Callable[..., Data], folder: Callable[..., str], tmp_path: Path, cache: Path
) -> None:
    prepared = prepare(data(shards=[Shard(source=folder(), cache_path=str(tmp_path / "own"))]))
    assert {Path(file.path).parent for file in prepared.shards[0].files.values()} == {tmp_path / "own"}
    assert [path.name for path in cache.iterdir()] == ["vocabulary-1-bytes-256-eot.txt"]


@pytest.mark.parametrize("below", ["", "of/mine"])
@pytest.mark.parametrize("field", ["shards", "eval_shards", "healing_shards"])
@pytest.mark.parametrize("by", ["MORPHOGEN_CACHE", "cache_path", "a link"])
def test_a_cache_in_the_text_is_refused_before_it_changes_it(
    by: str,
    field: str,
    below: str,
    data: Callable[..., Data],
    folder: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = Path(folder("text"))
    place = text / below
    if by == "a link":
        place = text.parent / "link"
        place.symlink_to(text)
    if by != "cache_path":
        monkeypatch.setenv("MORPHOGEN_CACHE", str(place))
    others = {} if field == "shards" else {"shards": [{"source": folder("other"), "name": "other"}]}
    shard = {"source": str(text), **({"cache_path": str(place)} if by == "cache_path" else {})}
    before = sorted(text.rglob("*"))
    with pytest.raises(InputError, match=rf"^data.{field}\[0\].source: .*lies in it, which it would change"):
        prepare(data(**others, **{field: [shard]}))
    assert sorted(text.rglob("*")) == before


def test_a_cache_that_is_hidden_in_the_text_is_none_of_it(
    data: Callable[..., Data], folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", folder() + "/.cache/of/mine")
    assert prepare(data()) == prepare(data())


def test_a_damaged_vocabulary_or_bpe_is_made_again(data: Callable[..., Data], cache: Path) -> None:
    chosen = data(tokenizer=BPE(vocab=300))
    prepared = prepare(chosen)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    Path(prepared.vocabulary_path).write_bytes(b"\x93NUMPY")
    [bpe] = cache.glob("bpe-*")
    bpe.write_bytes(bpe.read_bytes()[:100])
    assert prepare(chosen) == prepared
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_large_vocabularies_take_four_bytes(data: Callable[..., Data], monkeypatch: pytest.MonkeyPatch) -> None:
    small = prepare(data()).shards[0].files["train"]
    monkeypatch.setattr(tokenizers.ByteTokenizer, "vocab_size", 2**16 + 1)
    monkeypatch.setattr(tokenizers.ByteTokenizer, "digest", "large")
    large = prepare(data()).shards[0].files["train"]
    assert (small.dtype, large.dtype) == ("uint16", "uint32")
    assert np.array_equal(small.open(), large.open())


def test_what_was_left_out_is_remarked_and_recorded(data: Callable[..., Data]) -> None:
    chosen = data(eval_tokens=16)
    root = Path(chosen.shards[0].source)
    whole = prepare(chosen)
    assert whole.remarks() == []
    assert str(whole.accounts()[str(root)]) == "60 documents from 60 files"
    (root / "a.bin").write_bytes(b"x")
    (root / "b.csv").write_text("id,content\n1,one\n")
    left = prepare(chosen)
    [remark] = left.remarks()
    assert remark == (
        f"text of {str(root)!r}: 61 documents from 61 files, text from column 'content'; left out: "
        "1 files that end in .bin (a.bin)"
    )
    json.dumps(left.read())
    assert left.read()["accounts"][str(root)]["left_out"][0]["count"] == 1
    assert "account" not in json.dumps(left.environment())


def test_a_measurement_larger_than_the_split_is_remarked_and_recorded(data: Callable[..., Data]) -> None:
    prepared = prepare(data(eval_tokens=10**6))
    [(name, used)] = prepared.measured_tokens().items()
    has = prepared.eval_shards[0].files["eval"].tokens
    assert has - 17 < used < has
    [remark] = prepared.remarks()
    assert "data.eval_tokens is 1,000,000, but the eval split" in remark
    assert remark.endswith(f"has only {has:,}: it is measured on {used:,}")
    assert prepared.read()["measured_tokens"] == {name: used}
    assert prepare(data(eval_tokens=32)).measured_tokens() == {name: 32}


def test_a_source_that_cannot_be_read_is_told_with_its_place(
    data: Callable[..., Data], folder: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    bad = {"source": str(tmp_path / "bad.txt")}
    assert failure(data(shards=[{"source": folder()}, bad])).startswith("data.shards[1].source: data source ")
    held_out = data(shards=[{"source": folder()}], eval_shards=[bad])
    assert failure(held_out).startswith("data.eval_shards[0].source: data source ")
