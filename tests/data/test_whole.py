"""Text is read whole, or what is left out is named and counted."""

import bz2
import codecs
import gzip
import json
import lzma
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from morphogen.data.corpora import documents, fingerprint, reader_of
from morphogen.data.document import Account
from morphogen.data.store import survey
from morphogen.data.textfiles import LONGEST_SECTION_CHARS, SECTION_CHARS
from morphogen.errors import InputError
from morphogen.experiment import Shard

DNA = "ACGT" * 20_000


def read(source: Path, **options: object) -> tuple[list[str], Account]:
    shard = Shard.model_validate({"source": str(source), **options})
    reader = reader_of(shard)
    return [document.text for document in documents(shard, reader)], reader.account()


def failure(source: Path, **options: object) -> str:
    with pytest.raises(InputError) as raised:
        read(source, **options)
    return str(raised.value)


def left_out(account: Account) -> dict[str, int]:
    return {item.why: item.count for item in account.left_out}


def zstd(raw: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(raw, asbytes=True))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".lzma": lambda raw: lzma.compress(raw, format=lzma.FORMAT_ALONE),
    ".zst": zstd,
}

# -- which files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("A")
    (root / "sub" / "b.txt").write_text("B")
    return root


def test_links_to_files_and_folders_are_followed_and_nothing_is_read_twice(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.txt").write_text("C")
    (tmp_path / "d.txt").write_text("D")
    (corpus / "part2").symlink_to(tmp_path / "elsewhere")
    (corpus / "d.txt").symlink_to(tmp_path / "d.txt")
    (corpus / "sub" / "again").symlink_to(corpus)  # a cycle
    (corpus / "z.txt").symlink_to(corpus / "a.txt")
    (corpus / "sub" / "self").symlink_to(corpus / "sub")
    texts, account = read(corpus)
    assert texts == ["A", "D", "C", "B"]
    assert account.files == 4
    assert left_out(account) == {"links to what is read already": 3}
    assert "sub/again" in str(account)


def test_a_cycle_through_the_folder_above_ends(corpus: Path) -> None:
    (corpus / "sub" / "up").symlink_to("..")
    (corpus / "sub" / "loop").symlink_to("loop")
    assert "loop: the link leads nowhere" in failure(corpus)
    assert read(corpus, on_error="skip")[0] == ["A", "B"]


def test_what_is_left_out_is_named_with_its_reason_and_count(corpus: Path) -> None:
    for name in ("x.bin", "y.bin", "z.BIN", "v.bin", "README", "data.tar.gz", "t.parquet.gz", ".hidden.txt"):
        (corpus / name).write_bytes(b"\x00")
    (corpus / ".git").mkdir()
    (corpus / ".git" / "c.txt").write_text("C")
    texts, account = read(corpus)
    assert texts == ["A", "B"]
    assert left_out(account) == {
        "compressed .parquet files": 1,
        "files that end in .bin": 4,
        "files that end in .tar.gz": 1,
        "files without an ending": 1,
        "hidden": 2,
    }
    assert "2 documents from 2 files; left out: 1 compressed" in str(account)
    assert "4 files that end in .bin (v.bin, x.bin, y.bin, ...)" in str(account)


def test_what_is_neither_file_nor_folder_is_never_opened(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(corpus / "pipe.txt")
    os.mkfifo(corpus / "target")
    (corpus / "linked.txt").symlink_to(corpus / "target")
    monkeypatch.chdir(corpus)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.txt")
    texts, account = read(corpus)
    assert texts == ["A", "B"]
    assert left_out(account) == {
        "not opened, as it is a FIFO": 3,
        "not opened, as it is a socket": 1,
    }
    assert "is a FIFO, expected stdlib-code" in failure(corpus / "pipe.txt")
    assert "is a device, expected stdlib-code" in failure(Path("/dev/null"))


def refusing(monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
    """As the system does for who is not root."""
    real = getattr(Path, method)

    def refuse(path: Path, *args: object, **options: object) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, method, refuse)


def test_a_folder_that_may_not_be_read_is_an_error_or_left_out(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "iterdir", "sub")
    assert f"{corpus / 'sub'}: the folder cannot be read (Permission denied) (on_error: skip" in failure(corpus)
    texts, account = read(corpus, on_error="skip")
    assert (texts, left_out(account)) == (["A"], {"folders that cannot be read": 1})


def test_a_file_that_may_not_be_read_is_an_error_or_left_out(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, "open", "b.txt")
    assert "b.txt: cannot be read (Permission denied)" in failure(corpus)
    texts, account = read(corpus, on_error="skip")
    assert (texts, left_out(account)) == (["A"], {"files that cannot be read": 1})


def test_a_broken_link_is_named(corpus: Path) -> None:
    (corpus / "part2").symlink_to("nowhere")
    (corpus / "old.bin").symlink_to("nowhere")
    assert f"{corpus / 'part2'}: the link leads nowhere" in failure(corpus)
    account = read(corpus, on_error="skip")[1]
    assert left_out(account) == {"files that end in .bin": 1, "links that lead nowhere": 1}


def test_a_deep_folder_is_read(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * 300).mkdir(parents=True)
    deep.joinpath(*["d"] * 300, "a.txt").write_text("A")
    assert read(deep)[0] == ["A"]


def test_a_folder_of_nothing_but_others_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    assert failure(tmp_path).endswith("left out: 1 files that end in .bin (a.bin)")


# -- compressed


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_text_is_read(ending: str, tmp_path: Path) -> None:
    pack = PACKED[ending]
    (tmp_path / f"a.txt{ending}").write_bytes(pack("é\r\n".encode()))
    (tmp_path / f"b.jsonl{ending.upper()}").write_bytes(pack(b'{"text": "J"}\n'))
    (tmp_path / f"c.csv{ending}").write_bytes(pack(b"id,text\n1,C\n"))
    assert read(tmp_path)[0] == ["é\r\n", "J", "C"]
    (tmp_path / f"text8{ending}").write_bytes(pack(DNA.encode()))
    assert "".join(read(tmp_path / f"text8{ending}")[0]) == DNA


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_compressed_file_is_named(ending: str, damage: str, tmp_path: Path) -> None:
    raw = PACKED[ending](random.Random(0).randbytes(3000).hex().encode())
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(raw[:-20] if damage == "cut" else b"no such thing at all")
    (tmp_path / "b.txt").write_text("B")
    assert f"a.txt{ending}: damaged, cannot be decompressed" in failure(tmp_path)
    texts, account = read(tmp_path, on_error="skip")
    assert (texts, left_out(account)) == (["B"], {"damaged files": 1})


def test_several_compressed_streams_in_one_file_are_all_read(tmp_path: Path) -> None:
    for ending in (".gz", ".bz2", ".xz", ".zst"):
        pack = PACKED[ending]
        (tmp_path / f"a.txt{ending}").write_bytes(pack(b"one ") + pack(b"two"))
        assert read(tmp_path / f"a.txt{ending}")[0] == ["one two"]


@pytest.mark.parametrize("name", ["text8.zip", "a.tar.gz", "a.tgz", "a.parquet.zst"])
def test_an_archive_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    assert failure(tmp_path / name).endswith("which is not read; unpack it")


# -- long lines


@pytest.mark.parametrize(
    "text",
    [
        DNA,
        "word of text8 " * 5000,
        "x" * (LONGEST_SECTION_CHARS - 1),
        "x" * LONGEST_SECTION_CHARS,
        f"head\n{DNA}\n\ntail\n{DNA}",
        "\r\n".join(["short", "é" * 50_000, "short", "", "x" * 40_000]),
        "😀" * 30_000,
    ],
)
def test_a_text_of_long_lines_is_cut_by_length_and_nothing_is_lost(text: str, tmp_path: Path) -> None:
    path = tmp_path / "text8"
    path.write_bytes(text.encode())
    found = list(documents(Shard(source=str(path))))
    assert "".join(document.text for document in found) == text
    assert len({document.key for document in found}) == len(found)
    if len(text) > 2 * LONGEST_SECTION_CHARS:
        assert all(SECTION_CHARS <= len(document.text) <= 2 * LONGEST_SECTION_CHARS for document in found[:-1])
        assert len(found) > 4


def test_a_long_line_is_cut_at_the_ends_of_words(tmp_path: Path) -> None:
    (tmp_path / "text8").write_text("antidisestablishment " * 5000)
    assert all(text.endswith("ment ") for text in read(tmp_path / "text8")[0])


def test_lines_of_ordinary_length_are_never_cut(tmp_path: Path) -> None:
    text = "".join("y" * 15_000 + "\n" for _ in range(20))
    (tmp_path / "a.txt").write_text(text)
    assert all(found.endswith("\n") for found in read(tmp_path / "a.txt")[0])


def test_a_huge_file_in_a_folder_can_be_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge.txt").write_text(DNA)
    texts, _ = read(tmp_path)
    assert len(texts) > 10
    assert "".join(texts) == DNA
    for i in range(30):  # in a large folder a file stays whole
        (tmp_path / f"{i}.txt").write_text(f"small {i}")
    assert len(read(tmp_path)[0]) == 31
    monkeypatch.setattr("morphogen.data.corpora.WHOLE_CHARS", 50_000)  # unless it is too long
    assert len(read(tmp_path)[0]) > 40


# -- encodings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_a_byte_order_mark_decides_and_is_no_text(mark: bytes, encoding: str, tmp_path: Path) -> None:
    for name, text in {"a.txt": "é😀\r\nx", "b.jsonl": '{"text": "é"}\n', "c.csv": 'text,id\n"é, è",1\n'}.items():
        (tmp_path / name).write_bytes(mark + text.encode(encoding))
    assert read(tmp_path)[0] == ["é😀\r\nx", "é", "é, è"]


def test_broken_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF16_LE + "abc".encode("utf-16-le") + b"\x00\xd8a\x00")
    assert "a.txt is not utf-16-le text" in failure(tmp_path)


def test_text_with_nul_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n" + "wide".encode("utf-16-le"))
    said = "a.txt:2 is not text: a NUL byte (a binary file, or UTF-16 without a byte-order mark) after 1 characters"
    assert said in failure(tmp_path)
    (tmp_path / "b.txt").write_text("B")
    texts, account = read(tmp_path, on_error="skip")
    assert (texts, left_out(account)) == (["B"], {"texts that are not UTF-8": 1})


def test_of_a_file_alone_the_sections_that_are_not_text_are_skipped(tmp_path: Path) -> None:
    sections = [f"{i}".encode() * SECTION_CHARS + b"\n\n" for i in range(9)]
    sections[4] = b"caf\xe9\n" + sections[4]
    (tmp_path / "a.txt").write_bytes(b"".join(sections))
    texts, account = read(tmp_path / "a.txt", on_error="skip")
    assert left_out(account) == {"texts that are not UTF-8": 1}
    assert [text[0] for text in texts] == list("01235678")


# -- records


BAD_ROWS = {
    "null": (b'{"text": null}', "'text' is null, expected a string"),
    "number": (b'{"text": 3}', "'text' is int, expected a string"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "is not UTF-8 text: byte 0xe9 at character 14"),
    "not JSON": (b'{"text": ', "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "long number": (b'{"text": ' + b"9" * 5000 + b"}", "not JSON"),
    "no column": (b'{"txt": "x"}', "no column 'text', found txt"),
    "list": (b"[1]", "got list, expected an object with 'text'"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_row_of_jsonl_that_cannot_be_read_is_named_or_skipped_and_counted(kind: str, tmp_path: Path) -> None:
    row, said = BAD_ROWS[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + row + b'\n\n{"text": "two"}\n')
    message = failure(path)
    assert f"{path}:2" in message
    assert said in message
    texts, account = read(path, on_error="skip")
    assert texts == ["one", "two"]
    assert left_out(account) == {"records that cannot be read": 1}
    assert account.left_out[0].such_as == (f"{path}:2",)


def bad_parquet(path: Path) -> None:
    raw = [f"document {i}".encode() for i in range(3000)]
    raw[7] = b"caf\xe9"
    column = pyarrow.array(raw, type=pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), len(column), column.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)


def test_a_row_of_parquet_that_is_not_utf_8_is_named_or_skipped(tmp_path: Path) -> None:
    bad_parquet(tmp_path / "a.parquet")
    assert f"{tmp_path / 'a.parquet'} row 8 is not UTF-8 text: byte 0xe9 at byte 3" in failure(tmp_path)
    texts, account = read(tmp_path, on_error="skip")
    assert len(texts) == 2999
    assert left_out(account) == {"records that cannot be read": 1}


def test_null_rows_of_parquet_and_columns_of_bytes(tmp_path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array([b"caf\xc3\xa9", None, b"x"], type=pyarrow.large_binary())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "a.parquet row 2: 'text' is null" in failure(tmp_path)
    assert read(tmp_path, on_error="skip")[0] == ["café", "x"]


@pytest.mark.parametrize("where", [0.3, 0.9])
def test_a_damaged_parquet_file_is_named(where: float, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = random.Random(0)
    rows = [rng.randbytes(50).hex() for _ in range(2000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=500)
    raw = bytearray(path.read_bytes())
    at = int(len(raw) * where)
    raw[at : at + 64] = b"\xff" * 64
    path.write_bytes(raw)
    message = failure(path)
    assert f"{path}" in message
    assert len(read(path, on_error="skip")[0]) < 2000
    path.write_bytes(raw[: len(raw) // 2])
    assert "is not a readable parquet file" in failure(path)


@pytest.mark.parametrize(
    "raw",
    [
        '[{"text": "a"}, {"text": "b"}]',
        ' [\n {"text": "a"},\n {"text": "b"}]\n',
        '{"text": "a"}\n{"text": "b"}\n',
        '{"text":\n "a"}\n{"text":\n "b"}\n',
        '["a", "b"]',
        '{"text": "a"} {"text": "b"}',
    ],
)
def test_json_files_are_arrays_or_one_object_after_the_other(raw: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(raw)
    assert read(tmp_path)[0] == ["a", "b"]


@pytest.mark.parametrize("raw", ["[", "{", '[{"text": "a"}', "[1, 2]", "nothing", "[" * 100_000, '{"a": {"b": 1}}'])
def test_json_that_holds_no_text_is_refused(raw: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(raw)
    assert "a.json" in failure(tmp_path)
    assert read(tmp_path, on_error="skip")[0] in ([], ["a"])


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.csv", 'id,text\n1,"one, ""1""\nmore"\n2,two\n'),
        ("a.csv", 'id;text\r\n1;"one, ""1""\nmore"\r\n2;two\r\n'),
        ("a.tsv", 'text\tid\n"one, ""1""\nmore"\t1\n\ntwo\t2'),
    ],
)
def test_tables_are_read_as_records(name: str, raw: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw.encode())
    assert read(tmp_path)[0] == ['one, "1"\nmore', "two"]


def test_a_table_may_hold_long_texts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,id\n{'x' * 300_000},1\n")
    assert read(tmp_path)[0] == ["x" * 300_000]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"only one", "1 fields, expected 2"),
        (b'"a" b,2', "not a row of 2 fields"),
        (b"caf\xe9,2", "is not UTF-8 text"),
    ],
)
def test_a_row_of_a_table_that_cannot_be_read_is_named_or_skipped(row: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,id\none,1\n" + row + b"\ntwo,2\n")
    message = failure(path)
    assert f"{path}:3" in message
    assert said in message
    texts, account = read(path, on_error="skip")
    assert (texts, left_out(account)) == (["one", "two"], {"records that cannot be read": 1})


def tables(folder: Path, row: dict[str, object]) -> None:
    (folder / "a.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "b.json").write_text(json.dumps([row]))
    (folder / "c.csv").write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "d.parquet")


def test_the_column_of_the_text_is_found_where_it_is_plain_and_told(tmp_path: Path) -> None:
    tables(tmp_path, {"id": 1, "content": "C"})
    texts, account = read(tmp_path)
    assert texts == ["C"] * 4
    assert account.columns == {"content": 4}
    assert "text from column 'content'" in str(account)


def test_the_column_of_the_text_may_be_given(tmp_path: Path) -> None:
    tables(tmp_path, {"text": "T", "summary": "S"})
    assert read(tmp_path)[0] == ["T"] * 4
    assert read(tmp_path, text_field="summary")[0] == ["S"] * 4
    message = failure(tmp_path, text_field="sumary")
    assert "no column 'sumary', found summary, text; is it text_field: summary?" in message


@pytest.mark.parametrize("row", [{"question": "Q", "answer": "A"}, {"id": 1, "foo": "F"}])
def test_a_column_that_cannot_be_told_is_asked_for(row: dict[str, object], tmp_path: Path) -> None:
    tables(tmp_path, row)
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        message = failure(tmp_path / name)
        assert "no column 'text', found" in message
        assert "text_field" in message


def test_a_column_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A")
    assert "text_field is 'x', but only records have one" in failure(tmp_path / "a.txt", text_field="x")
    with pytest.raises(ValueError, match="only files and data sets have one"):
        Shard(source="stdlib-code", text_field="x")


# -- the account


def test_the_account_is_kept_with_the_survey(corpus: Path) -> None:
    (corpus / "x.bin").write_bytes(b"x")
    (corpus / "copy.txt").write_text("A")
    (corpus / "empty.txt").write_text("")
    first = survey(Shard(source=str(corpus)))
    assert (first.documents, first.duplicates) == (2, 1)
    assert left_out(first.account) == {"empty": 1, "files that end in .bin": 1}
    assert survey(Shard(source=str(corpus))) == first


def test_another_way_to_read_is_another_fingerprint(corpus: Path) -> None:
    shards = [
        Shard(source=str(corpus)),
        Shard(source=str(corpus), on_error="skip"),
        Shard(source=str(corpus), text_field="x"),
    ]
    assert len({fingerprint(shard) for shard in shards}) == 3
    (corpus / "x.bin").write_bytes(b"x")  # nothing of it is read, but it is told of
    assert fingerprint(shards[0]) != fingerprint(Shard(source=str(corpus / "sub")))
