import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kills import deadly
from morphogen.data import corpora, store
from morphogen.data.cache import cache_folder, cached, read_checked, write_checked
from morphogen.data.document import Document, Reader, digest_of
from morphogen.data.prepare import prepare
from morphogen.data.store import SPLITS, distinct, split_of, survey
from morphogen.data.tokenizers import ByteTokenizer
from morphogen.errors import InputError, RunError
from morphogen.experiment import Data, Shard, Split
from processes import forked

HALVES = Split(train=0.6, eval=0.2)


def encoded(source: str) -> dict[store.SplitName, store.TokenFile]:
    shard = Shard(source=source)
    files, _ = store.token_files(shard, survey(shard), HALVES, ByteTokenizer())
    return files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_in_exactly_one_split_and_comes_back_whole(folder: Callable[..., str]) -> None:
    source = folder(documents=80)
    files = encoded(source)
    wanted = {document.text for document in corpora.documents(Shard(source=source))}
    found: list[str] = []
    for name in SPLITS:
        tokens = files[name].open()
        texts = [
            bytes(part[:-1].tolist()).decode() for part in np.split(tokens, np.flatnonzero(tokens == 256) + 1)[:-1]
        ]
        assert len(texts) == files[name].documents
        assert [split_of(digest_of(text), HALVES) for text in texts] == [name] * len(texts)
        hashes = [int.from_bytes(digest_of(text)[:8], "little") for text in texts]
        assert files[name].document_hashes().tolist() == hashes
        found += texts
    assert len(found) == len(wanted) == 80
    assert set(found) == wanted


def test_split_shares_are_kept_and_depend_on_content_alone() -> None:
    split = Split(train=0.7, eval=0.2)
    names = [split_of(digest_of(f"text {i}"), split) for i in range(4000)]
    shares = [names.count(name) / len(names) for name in SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.03)
    share = np.mean([store.sampled(digest_of(f"text {i}"), 0.25) for i in range(4000) if names[i] == "train"])
    assert abs(share - 0.25) < 0.03  # the sample is independent of the split


def test_duplicates_and_empty_documents_are_dropped() -> None:
    found = list(distinct(Document(str(i), text) for i, text in enumerate(["a", "", "b", "a", "é"])))
    assert [(document.text, document.n_bytes) for document in found] == [("a", 1), ("b", 1), ("é", 2)]


def test_documents_of_one_origin_share_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [f"module {i}" for i in range(50)]
    taken = [Document(str(i), f"docstring {i}", digest_of(module)) for i, module in enumerate(modules)]
    monkeypatch.setattr(corpora, "documents", lambda shard, reader: iter(taken))
    files = encoded("stdlib-docs")  # one of the sources that are copied into the cache
    for name in SPLITS:
        text = bytes(t if t < 256 else 10 for t in files[name].open().tolist()).decode()
        assert text.split("\n")[:-1] == [
            f"docstring {i}" for i, module in enumerate(modules) if split_of(digest_of(module), HALVES) == name
        ]


def test_costly_sources_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = [json.dumps({"text": f"row {i} 😀"}) + "\n" for i in range(30)]
    (tmp_path / "set" / "train.jsonl").write_text("".join(rows))
    reads = []
    streamed = corpora.documents

    def counted(shard: Shard, reader: Reader) -> Iterator[Document]:
        reads.append(shard.source)
        return streamed(shard, reader)

    monkeypatch.setattr(corpora, "documents", counted)
    source = f"hf:{tmp_path / 'set'}"
    first = encoded(source)
    assert encoded(source) == first
    assert len(reads) == 1
    [copy] = cache.glob("text-*.jsonl")
    copy.write_bytes(copy.read_bytes()[:-5])  # cut: fetched anew
    for path in cache.glob("tokens-*"):
        path.unlink()
    assert encoded(source) == first
    assert len(reads) == 2


def test_a_second_start_reads_no_text(folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder()
    first = encoded(source)

    def forbidden(shard: Shard, reader: Reader) -> Iterator[Document]:
        raise AssertionError("the corpus was read again")

    monkeypatch.setattr(corpora, "documents", forbidden)
    assert encoded(source) == first


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "sidecar", "hashes"])
def test_a_damaged_cache_is_noticed_and_rebuilt(damage: str, folder: Callable[..., str], cache: Path) -> None:
    source = folder()
    encoded(source)
    before = contents(cache)
    tokens = next(path for path in sorted(cache.iterdir()) if path.name.endswith(".train.bin"))
    raw = tokens.read_bytes()
    if damage == "truncate":
        tokens.write_bytes(raw[:-2])
    elif damage == "flip":
        tokens.write_bytes(raw[:40] + bytes([raw[40] ^ 1]) + raw[41:])
    elif damage == "remove":
        tokens.unlink()
    elif damage == "sidecar":
        tokens.with_name(tokens.name.replace(".train.bin", ".json")).write_text('{"payload": {}, "sha')
    else:
        tokens.with_suffix(".docs").write_bytes(b"")
    assert contents(cache) != before
    encoded(source)
    assert contents(cache) == before


def test_a_token_file_that_changes_after_preparation_is_refused(folder: Callable[..., str]) -> None:
    files = encoded(folder())
    Path(files["train"].path).write_bytes(b"12")
    with pytest.raises(RunError, match=r"has 2 bytes, expected \d+; the cache was changed"):
        files["train"].open()
    Path(files["eval"].path).unlink()
    with pytest.raises(RunError, match="is gone"):
        files["eval"].open()


def test_a_changed_source_gets_new_tokens(folder: Callable[..., str]) -> None:
    source = folder()
    first = encoded(source)
    (Path(source) / "new.txt").write_text("one more document")
    second = encoded(source)
    assert sum(f.documents for f in second.values()) == sum(f.documents for f in first.values()) + 1
    assert first["train"].open().size == first["train"].tokens  # the older tokens are still whole


def test_a_source_that_changes_while_it_is_read_is_refused_and_read_again_next_time(
    folder: Callable[..., str], cache: Path
) -> None:
    source = folder(documents=5)
    shard = Shard(source=source)
    corpus = survey(shard)
    path = Path(source) / "0000.txt"
    stat = path.stat()
    raw = path.read_bytes()
    path.write_bytes(raw[::-1] if raw.isascii() else raw.replace(b"a", b"b"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # behind the fingerprint's back
    with pytest.raises(InputError, match="its text changed while it was being read; start again"):
        store.token_files(shard, corpus, HALVES, ByteTokenizer())
    assert not list(cache.glob("tokens-*"))
    assert sum(file.documents for file in encoded(source).values()) == 5


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with cached(path) as file:
            file.write(b"new and half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"f": b"old"}


def test_a_full_disk_and_a_folder_that_cannot_be_made_say_what_to_do(
    tmp_path: Path, folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder()
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"cannot write corpus-.*set MORPHOGEN_CACHE or data.shards\[\].cache_path"):
        encoded(source)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        encoded(source)
    assert contents(tmp_path / "full") == {}


def test_checked_json_tells_any_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert read_checked(path) is None
    write_checked(path, {"a": [1, 2.5, None], "é": "x"})
    assert read_checked(path) == {"a": [1, 2.5, None], "é": "x"}
    raw = path.read_bytes()
    for damaged in (raw[:-1], raw.replace(b"2.5", b"2.6"), b"[]", b"", b"\xff"):
        path.write_bytes(damaged)
        assert read_checked(path) is None


def started(data: Data, kill_at: int = 0) -> int:
    """The id of a process that prepares data, and dies at the given rename."""

    def act() -> int:
        os.replace = deadly(os.replace, kill_at)
        prepare(data)
        return 0

    return forked(act)


def ended(process: int) -> int:
    """A process's exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_preparing_survives_a_kill_at_any_rename(data: Callable[..., Data], cache: Path) -> None:
    chosen = data(tokenizer={"kind": "bpe", "vocab": 300})
    prepared = prepare(chosen)
    whole = contents(cache)
    for kill_at in (2, 5, 8):
        shutil.rmtree(cache)
        assert ended(started(chosen, kill_at)) == -9
        assert prepare(chosen) == prepared
        assert {name: raw for name, raw in contents(cache).items() if not name.startswith(".")} == whole


def test_two_processes_preparing_at_once_agree(data: Callable[..., Data], cache: Path) -> None:
    chosen = data(tokenizer={"kind": "bpe", "vocab": 300})
    both = [started(chosen), started(chosen)]
    assert [ended(process) for process in both] == [0, 0]
    written = contents(cache)
    shutil.rmtree(cache)
    prepare(chosen)
    assert contents(cache) == written


def test_a_home_that_nobody_has_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cache_path: got '~nobody-at-all/x'"):
        survey(Shard(source="stdlib-code", cache_path="~nobody-at-all/x"))
    monkeypatch.setenv("MORPHOGEN_CACHE", "~nobody-at-all")
    with pytest.raises(InputError, match="MORPHOGEN_CACHE: got '~nobody-at-all'"):
        cache_folder()


def test_the_cache_folder_is_the_variable_or_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MORPHOGEN_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "morphogen"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "morphogen"


def test_without_a_home_caches_lie_among_the_users_own_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nobody(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MORPHOGEN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder == cache_folder() == tmp_path / f"morphogen-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="set MORPHOGEN_CACHE"):
        cache_folder()


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_hashes_that_change_after_preparation_are_refused(damage: str, folder: Callable[..., str]) -> None:
    file = encoded(folder())["train"]
    path = Path(file.path).with_suffix(".docs")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"hashes .*\.docs: .*the cache was changed"):
        file.document_hashes()


def test_a_copy_that_goes_while_it_is_read_is_told_of(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a"}\n')
    shard = Shard(source=f"hf:{tmp_path / 'set'}")
    survey(shard)
    [copy] = cache.glob("text-*.jsonl")
    copy.write_bytes(b"[1, 2\n")
    with pytest.raises(InputError, match=r"is gone or damaged .* made again at the next start"):
        list(store.stored_documents(shard))
    copy.unlink()
    with pytest.raises(InputError, match=r"is gone or damaged .*No such file"):
        list(store.stored_documents(shard))


def test_a_cache_file_that_may_not_be_read_is_made_again(
    folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder()
    first = encoded(source)
    opened = Path.open

    def refuse(path: Path, *args: object) -> object:
        if str(path) == first["train"].path:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    assert encoded(source) == first
