"""Tokenizers of the kinds that people bring along, each trained on a text given."""

from collections.abc import Callable, Sequence
from typing import Final

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def byte_level_bpe(texts: Sequence[str]) -> Tokenizer:
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    return _bpe(pieces, texts, 300)


def roberta(texts: Sequence[str]) -> Tokenizer:
    """Byte-level with a space put before the text, and offsets without the spaces."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    return _bpe(pieces, texts, 300)


def _bpe(pieces: Tokenizer, texts: Sequence[str], vocab: int) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces


def suffix_bpe(texts: Sequence[str]) -> Tokenizer:
    """Words end with </w>, as in GPT-1 and CLIP."""
    pieces = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(vocab_size=120, end_of_word_suffix="</w>", show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces


def suffix_bpe_bare(texts: Sequence[str]) -> Tokenizer:
    pieces = suffix_bpe(texts)
    pieces.decoder = None
    return pieces


def word_piece(texts: Sequence[str]) -> Tokenizer:
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pieces.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces


def unigram(texts: Sequence[str]) -> Tokenizer:
    pieces = Tokenizer(models.Unigram())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False, max_piece_length=4
    )
    pieces.train_from_iterator(texts, trainer)
    return pieces


def unigram_bare(texts: Sequence[str]) -> Tokenizer:
    pieces = unigram(texts)
    pieces.decoder = None
    return pieces


def llama(texts: Sequence[str]) -> Tokenizer:
    """Spaces are written by the normalizer, unknown characters as bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "e": 257, "t": 258, "▁t": 259}
    pieces = Tokenizer(models.BPE(vocab, [("▁", "t")], byte_fallback=True))
    normalizers = tokenizers.normalizers
    pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return pieces


def characters_bpe(texts: Sequence[str]) -> Tokenizer:
    """A BPE over characters, spaces among them: no pre-tokenizer, no decoder."""
    pieces = Tokenizer(models.BPE())
    pieces.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=80, show_progress=False, max_token_length=3))
    return pieces


def byte_level_bare(texts: Sequence[str]) -> Tokenizer:
    pieces = byte_level_bpe(texts)
    pieces.decoder = None
    return pieces


def word_level(texts: Sequence[str]) -> Tokenizer:
    pieces = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=1000, special_tokens=["[UNK]"], show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    return pieces


KINDS: Final[dict[str, Callable[[Sequence[str]], Tokenizer]]] = {
    "byte-level BPE": byte_level_bpe,
    "byte-level BPE without decoder": byte_level_bare,
    "byte-level BPE with a prefix space": roberta,
    "BPE with </w>": suffix_bpe,
    "BPE with </w> without decoder": suffix_bpe_bare,
    "WordPiece": word_piece,
    "WordLevel": word_level,
    "Unigram": unigram,
    "Unigram without decoder": unigram_bare,
    "BPE with byte fallback": llama,
    "BPE without decoder": characters_bpe,
}
