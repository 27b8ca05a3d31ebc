import json
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import up_to
from morphogen.data import corpora
from morphogen.data.corpora import documents, fingerprint
from morphogen.data.document import Document, Reader, digest_of
from morphogen.data.textfiles import SECTION_CHARS
from morphogen.errors import InputError
from morphogen.experiment import Shard
from morphogen.sections.built_in import CORPORA, BuiltIn, forms


def texts(source: str | Path, **options: object) -> list[str]:
    return [document.text for document in documents(Shard.model_validate({"source": str(source), **options}))]


def failure(source: str | Path, **options: object) -> str:
    with pytest.raises(InputError) as raised:
        texts(source, **options)
    return str(raised.value)


def test_stdlib_code_is_the_library_without_tests_in_a_fixed_order() -> None:
    found = list(documents(Shard(source="stdlib-code", max_documents=400)))
    keys = [document.key for document in found]
    assert len(keys) == len(set(keys)) == 400
    assert {"abc.py", "ast.py", "argparse.py"} <= set(keys)
    assert not [key for key in keys if {"test", "tests", "site-packages"} & set(Path(key).parts)]
    root = Path(sysconfig.get_path("stdlib"))
    assert next(d.text for d in found if d.key == "abc.py").encode() == (root / "abc.py").read_bytes()
    assert found == list(documents(Shard(source="stdlib-code", max_documents=400)))


def test_stdlib_docs_are_topics_then_docstrings_and_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib"
    (library / "pydoc_data").mkdir(parents=True)
    (library / "pydoc_data" / "topics.py").write_text("topics = {'b': 'second', 'a': 'first'}\n")
    module = (
        f'"""Head."""\nopen({str(tmp_path / "imported")!r}, "w")\n'
        'class A:\n    """Of A."""\n    async def f(self):\n        """Of f \\d."""\n'
    )
    (library / "mod.py").write_text(module)
    (library / "broken.py").write_text("def (:\n")
    (library / "silent.py").write_text("x = 1\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(library))
    found = list(documents(Shard(source="stdlib-docs")))
    assert [document.text for document in found[:2]] == ["first", "second"]
    assert [document.key for document in found] == ["topics/a", "topics/b", "docstrings/mod.py"]
    assert found[2].text == "mod\n\nHead.\n\nmod.A\n\nOf A.\n\nmod.A.f\n\nOf f \\d.\n"
    assert not (tmp_path / "imported").exists()
    assert found[2].origin == digest_of(module)  # the docstrings follow their module into its split
    code = {document.key for document in documents(Shard(source="stdlib-code"))}
    assert code == {"mod.py", "broken.py", "silent.py"}  # the topics are not code


@given(
    lines=st.lists(st.text(alphabet="aé\r\n\u2028 😀", max_size=200), max_size=120),
    long=st.integers(0, 4),
)
@settings(max_examples=up_to(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sections_of_one_text_file_join_to_the_file(tmp_path: Path, lines: list[str], long: int) -> None:
    raw = ("\n\n".join(lines) + "x" * (long * SECTION_CHARS)).encode()
    path = tmp_path / "book.txt"
    path.write_bytes(raw)
    found = list(documents(Shard(source=str(path))))
    assert "".join(document.text for document in found).encode() == raw
    assert len({document.key for document in found}) == len(found)
    assert all(len(document.text) >= SECTION_CHARS for document in found[:-1])


def test_a_book_becomes_many_sections_that_end_at_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_text("\n\n".join("paragraph " * 40 for _ in range(200)))
    found = texts(path)
    assert len(found) > 10
    assert all(text.endswith("\n\n") for text in found[:-1])


def test_a_folder_is_read_in_order_without_hidden_and_binary_files(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    for name, text in {
        "b.md": "B", "a/z.txt": "Z", "c.jsonl": '{"text": "J"}\n', ".hidden.txt": "H", ".git/x.txt": "G", "w.bin": "W",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert [(d.key, d.text) for d in documents(Shard(source=str(root)))] == [
        ("a/z.txt", "Z"),
        ("b.md", "B"),
        ("c.jsonl:1", "J"),
    ]
    (tmp_path / "none").mkdir()
    assert "the folder holds no text; files are read that end in .arrow, .c, .cc" in failure(tmp_path / "none")


def test_arrow_is_read_as_a_stream_and_as_a_file(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["one", "two", "three"]})
    for name, writer in (("stream", pyarrow.ipc.new_stream), ("file", pyarrow.ipc.new_file)):
        with writer(tmp_path / f"{name}.arrow", table.schema) as out:
            out.write_table(table, max_chunksize=2)
        assert texts(tmp_path / f"{name}.arrow") == ["one", "two", "three"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_of_columns_is_closed_when_enough_was_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, path, opened = pyarrow.table({"text": ["one", "two"]}), tmp_path / f"a.{kind}", []
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    where, name = {"parquet": (pyarrow.parquet, "ParquetFile"), "arrow": (pyarrow, "memory_map")}[kind]
    make = getattr(where, name)
    monkeypatch.setattr(where, name, lambda source: opened.append(make(source)) or opened[-1])
    rows = documents(Shard(source=str(path)))
    next(rows)
    assert not opened[0].closed
    rows.close()
    assert opened[0].closed


def test_jsonl_and_parquet_give_the_text_column(tmp_path: Path) -> None:
    wanted = ["one\nline", "zwei\r\n😀", "", "three"]
    rows = [{"text": text, "id": i} for i, text in enumerate(wanted)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.jsonl") == texts(tmp_path / "a.parquet") == wanted
    assert texts(tmp_path / "a.parquet", max_documents=2) == wanted[:2]


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b \\ud83d\\ude00"}\n')
    assert texts(tmp_path / "a.jsonl") == ["a\ufffdb 😀"]


def test_hugging_face_data_sets_stream_from_a_local_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for split in ("train", "test"):
        rows = [json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(5)]
        (root / f"{split}.jsonl").write_text("".join(rows))
    assert texts(f"hf:{root}") == [f"train {i}" for i in range(5)]
    assert texts(f"hf:{root}", split="test", max_documents=2) == ["test 0", "test 1"]
    message = failure(f"hf:{root}", split="tets")
    assert "datasets cannot read it" in message
    assert "split 'tets'" in message


def test_a_hugging_face_data_set_without_text_says_which_columns_there_are(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"texts": "a", "id": 1}\n')
    message = failure(f"hf:{tmp_path / 'set'}")
    assert "row 0: no column 'text', found id, texts; is it text_field: texts?" in message
    assert "names no data set" in failure("hf:")


@pytest.mark.parametrize(("source", "hint"), [("stdlib-cod", "stdlib-code"), ("corpus.tx", "corpus.txt")])
def test_a_missing_source_names_the_alternatives(
    source: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("x")
    message = failure(source)
    assert message.startswith(f"data source {source!r}: no such file or folder, expected {', '.join(forms())}, a")
    assert message.endswith(f"did you mean {hint!r}?")


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl:1: got list, expected an object"),
        ("a.jsonl", b'{"txt": "x"}\n', "a.jsonl:1: no column 'text', found txt"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl:1: 'text' is int, expected a string"),
        ("a.txt", b"fine\nnot \xff\xfe", "a.txt:2 is not UTF-8 text: byte 0xff after 4 characters of the line"),
        ("a.parquet", b"PAR1 not really", "not a readable parquet file"),
    ],
)
def test_unreadable_files_are_named_with_the_place(name: str, raw: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    assert said in failure(tmp_path / name)


def test_suffixes_in_capitals_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text('{"text": "x"}\n{"text": "y"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["z"]}), tmp_path / "B.Parquet")
    assert texts(tmp_path) == ["x", "y", "z"]
    assert texts(tmp_path / "A.JSONL") == ["x", "y"]


def test_a_file_that_cannot_be_looked_at_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"gone\.txt: the link leads nowhere"):
        fingerprint(Shard(source=str(tmp_path)))
    with pytest.raises(InputError, match="File name too long"):
        fingerprint(Shard(source="x" * 5000))


def test_a_folder_names_the_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "latin.txt").write_bytes("é".encode("latin-1") + b"ab")
    assert "latin.txt:1 is not UTF-8 text: byte 0xe9 after 0 characters of the line" in failure(tmp_path / "c")


def test_fingerprints_follow_the_files(tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    (root / "a.txt").write_text("a")
    shard = Shard(source=str(root))
    first = fingerprint(shard)
    assert fingerprint(shard) == first
    (root / "b.txt").write_text("b")
    assert (second := fingerprint(shard)) != first
    os.utime(root / "b.txt", ns=(1, 1))
    assert fingerprint(shard) != second
    assert fingerprint(Shard(source=str(root), max_documents=1)) != fingerprint(shard)
    hub = [Shard(source="hf:a/b"), Shard(source="hf:a/b", revision="v1"), Shard(source="hf:a/b", split="test")]
    assert len({fingerprint(shard) for shard in hub}) == 3


@pytest.mark.parametrize("name", CORPORA)
def test_a_built_in_corpus_is_read_listed_and_documented(name: str) -> None:
    corpus, shard = CORPORA[name], Shard(source=name, max_documents=2)
    assert len(list(documents(shard))) == 2
    assert (shard.is_local, corpora.is_costly(shard)) == (False, corpus.costly)
    assert f"`{name}{corpus.arguments}`" in Shard.model_json_schema()["properties"]["source"]["description"]
    with pytest.raises(ValueError, match=re.escape(f"{name}{corpus.arguments}, ")):
        Shard(source=" ")


def test_the_table_of_sources_in_the_docs_is_that_of_the_corpora() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [f"| `{name}{c.arguments}` | {c.what} | {c.document} |" for name, c in CORPORA.items()]
    written = text[text.index("|---|---|---|\n") :].splitlines()[1 : 1 + len(rows)]
    assert written == rows, "the first rows of the table in docs/data.md are those of CORPORA, in its order"


def sums(arguments: str, reader: Reader) -> Iterator[Document]:
    """A corpus to enter."""
    return (Document(str(i), f"{i} + {i}") for i in range(int(arguments or 3)))


def test_one_entry_adds_a_corpus_and_its_version_alone_tells_it_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Shard(source="stdlib-code"))
    for version in (1, 2):
        entry = BuiltIn(f"{__name__}:sums", "sums", "a sum", version, "[:COUNT]")
        monkeypatch.setitem(CORPORA, "sums", entry)
        assert texts("sums:2") == ["0 + 0", "1 + 1"]
        told = fingerprint(Shard(source="sums"))
        monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")  # the library plays no part in it
        assert fingerprint(Shard(source="sums")) == told != before
        assert fingerprint(Shard(source="sums:2")) != told
        monkeypatch.undo()
        before = told
    monkeypatch.setitem(CORPORA, "sums", entry)
    message = failure("summs")
    assert f"expected {', '.join(forms())}, a file" in message
    assert "sums[:COUNT]" in forms()
    assert message.endswith("did you mean 'sums'?")
