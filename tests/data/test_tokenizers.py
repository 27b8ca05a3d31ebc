import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import up_to
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
@settings(max_examples=up_to(80), deadline=None)
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


def definition(**model: object) -> dict[str, object]:
    """A small `tokenizer.json` as data."""
    nothing = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    plain: dict[str, object] = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    return {"version": "1.0", "added_tokens": [], **dict.fromkeys(nothing), "model": {**plain, **model}}


UNIGRAM: dict[str, object] = {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None}
BROKEN = {
    "cut": json.dumps(definition())[:-20],
    "no object": "[1, 2]",
    "a number": "3",
    "empty": "",
    "deep": "[" * 100_000 + "]" * 100_000,
    "no model": json.dumps({**definition(), "model": None}),
    "merge of unknown pieces": json.dumps(definition(merges=[["a", "c"]])),
    "merge into an unknown piece": json.dumps(definition(merges=[["a", "b"]])),
    "merge of three": json.dumps(definition(merges=["a b c"])),
    "merge of numbers": json.dumps(definition(merges=[[1, 2]])),
    "ids that are no numbers": json.dumps(definition(vocab={"a": "x"})),
    "negative ids": json.dumps(definition(vocab={"a": -1})),
    "huge ids": json.dumps(definition(vocab={"a": 0, "b": 4_000_000_000})),
    "holes": json.dumps(definition(vocab={"a": 0, "b": 5_000})),
    "no tokens": json.dumps(definition(vocab={})),
    "unknown kind": json.dumps(definition(type="Trie")),
    "unigram without pieces": json.dumps(definition(**{**UNIGRAM, "vocab": []})),
    "unknown id beyond the vocabulary": json.dumps(definition(**{**UNIGRAM, "unk_id": 9})),
}


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tokenizer_is_told_in_one_line(fault: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BROKEN[fault])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    name = str(tmp_path / "tokenizer.json" if form == "file" else tmp_path)
    with pytest.raises(InputError) as raised:
        from_hugging_face(name)
    assert str(raised.value).startswith(f"data.tokenizer {name!r}: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


UNKNOWING = {
    "Unigram": definition(**UNIGRAM),
    "WordLevel": definition(type="WordLevel", unk_token="[UNK]"),
    "WordPiece": definition(
        type="WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=9
    ),
    "BPE": definition(unk_token="[UNK]"),
}


@pytest.mark.parametrize("kind", UNKNOWING)
def test_a_character_it_does_not_know_and_has_no_token_for_is_told_with_its_text(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(UNKNOWING[kind]))
    tokenizer = from_hugging_face(str(tmp_path / "tokenizer.json"))
    assert [ids.tolist() for ids in tokenizer.encode_batch(["a", "a"])] == [[0], [0]]
    with pytest.raises(InputError, match=r"tokenizer.json': cannot encode 'ax' \(.*(unk|UNK)"):
        tokenizer.encode_batch(["a", "ax", "a"])


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 1, "ab": 2}
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition(vocab=vocab, merges=[["a", "b"]], dropout=0.9)))
    tokenizer = from_hugging_face(str(tmp_path / "tokenizer.json"))
    assert {tuple(ids.tolist()) for ids in tokenizer.encode_batch(["ab"] * 50)} == {(2,)}


def test_folders_without_a_fast_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    (tmp_path / "tokenizer.model").write_bytes(b"\x00\x01 not a model")
    for content in ("{}", "[]", '{"tokenizer_class": 3}', '{"tokenizer_class": "LlamaTokenizer"}', "{"):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(InputError, match=r"data.tokenizer '.*': ") as raised:
            from_hugging_face(str(tmp_path))
        assert "\n" not in str(raised.value)
    for name in ("a\0b", "x" * 5000, "", "..", "hf:nobody/nothing", "nobody/no/thing"):
        with pytest.raises(InputError, match=r"data\.tokenizer "):
            from_hugging_face(name)
