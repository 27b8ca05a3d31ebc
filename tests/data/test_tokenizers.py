import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.data.tokenizers import (
    LONGEST_RUN,
    ByteTokenizer,
    PieceTokenizer,
    Tokenizer,
    _in_short_runs,
    from_hugging_face,
    from_json,
    train_bpe,
)
from morphogen.errors import InputError

SAMPLE = ["def f(x):\n    return x + 1\n", "the quick brown fox\r\n", "naïve 😀 δέλτα ", "<|endoftext|>"] * 5
TRAINED = train_bpe(SAMPLE, 300)
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TRAINED], ids=["bytes", "bpe"])
@given(texts=st.lists(any_text, max_size=4))
@settings(max_examples=80, deadline=None)
def test_round_trip_is_exact_and_bytes_add_up(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode([*ids.tolist(), tokenizer.eot]) == text
        assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
        assert tokenizer.eot not in ids
        assert ids.size == 0 or ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TRAINED], ids=["bytes", "bpe"])
def test_awkward_texts(tokenizer: Tokenizer) -> None:
    texts = ["", "\n", "\r\n\t ", "  a  ", "\x00", "e\u0301é", "<|endoftext|></s>"]
    assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode_batch(texts)] == texts
    assert tokenizer.bytes_per_token[tokenizer.eot] == 0


def test_bpe_merges_and_ends_with_end_of_text() -> None:
    assert TRAINED.vocab_size == 300
    assert TRAINED.eot == 299
    [ids] = TRAINED.encode_batch(["def f(x):\n    return x + 1\n"])
    assert len(ids) < 20
    assert train_bpe(SAMPLE, 257).vocab_size == 257  # bytes alone
    assert train_bpe(["ab"], 1000).vocab_size == 258  # too little text for more than one merge


def test_bpe_json_round_trip_keeps_the_digest() -> None:
    again = from_json(TRAINED.to_json())
    assert (again.digest, again.eot, again.vocab_size) == (TRAINED.digest, TRAINED.eot, TRAINED.vocab_size)
    assert again.bytes_per_token.tolist() == TRAINED.bytes_per_token.tolist()
    assert train_bpe(SAMPLE[::-1], 280).digest != TRAINED.digest


def test_training_is_the_same_in_another_process_and_under_another_hash_seed() -> None:
    script = (
        "import json, sys; from morphogen.data.tokenizers import train_bpe; "
        "print(train_bpe(json.loads(sys.stdin.read()), 300).digest)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(SAMPLE),
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PATH": ""},
        )
        assert done.stdout.strip() == TRAINED.digest


def byte_level(folder: Path) -> Path:
    """A tiny byte-level tokenizer as Hugging Face keeps them."""
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    pieces.train_from_iterator(SAMPLE, trainer)
    pieces.add_tokens(["   "])
    folder.mkdir()
    pieces.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_hugging_face_folder_is_exact_and_keeps_its_own_end_of_text(tmp_path: Path) -> None:
    tokenizer = from_hugging_face(str(byte_level(tmp_path / "tok")))
    assert tokenizer.eot == 0
    texts = ["héllo\r\n  world   😀", "<|endoftext|> is text here", ""]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids.tolist()) == text
        assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
        assert tokenizer.eot not in ids
    assert from_hugging_face(str(tmp_path / "tok")).digest == tokenizer.digest


def test_a_tokenizer_json_alone_gets_an_end_of_text(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tok")
    tokenizer = from_hugging_face(str(folder / "tokenizer.json"))
    assert tokenizer.eot == tokenizer.vocab_size - 1
    assert tokenizer.digest != from_hugging_face(str(folder)).digest


def test_pieces_of_other_kinds_count_the_text_they_decode_to() -> None:
    vocab = {"[UNK]": 0, "play": 1, "##ing": 2, "ß": 3}
    pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    pieces.decoder = tokenizers.decoders.WordPiece(prefix="##")
    assert PieceTokenizer(pieces).bytes_per_token.tolist()[1:] == [5, 3, 3, 0]  # a word carries its space
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "<0x0A>": 1, "é": 2}, []))
    pieces.decoder = tokenizers.decoders.Metaspace()
    assert PieceTokenizer(pieces).bytes_per_token.tolist() == [2, 1, 2, 0]


def test_a_tokenizer_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.tokenizer 'byte': got no tokenizer.*did you mean 'bytes'\?"):
        from_hugging_face("byte")
    (tmp_path / "tok").mkdir()
    with pytest.raises(InputError, match=r"data.tokenizer '.*tok': got no tokenizer"):
        from_hugging_face(str(tmp_path / "tok"))
    for content in ("{", "{}"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad.json': not a tokenizer.json"):
            from_hugging_face(str(tmp_path / "bad.json"))


@pytest.mark.parametrize("run", ["ACGT", "7", "=", "_", " ", "\n", "नि", "数", "a=1 ", "😀"])
def test_a_bpe_learns_from_runs_of_bounded_length(run: str) -> None:
    text = f"head {run * 5000} tail"
    pieces = list(_in_short_runs([text, "plain"]))
    assert "".join(pieces) == text + "plain"
    alike = len({sign.isalpha() for sign in run}) == 1 and len(run.strip()) in (0, len(run))
    if alike and run.isascii():
        assert max(map(len, pieces)) <= LONGEST_RUN + len("head ")
    assert list(_in_short_runs(SAMPLE)) == SAMPLE


def test_a_bpe_of_text_without_spaces_is_exact_and_learns_its_words() -> None:
    text = "ACGGT" * 20_000
    trained = train_bpe([text], 300)
    [ids] = trained.encode_batch([text])
    assert trained.decode(ids) == text
    assert len(ids) < len(text) / 100
