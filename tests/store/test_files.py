"""The one atomic writer: modes by the umask, whoever is killed leaves nothing for long."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphogen.store.files import IN_USE, atomic, canonical_json, remove_stale, scratch, write_atomic

HANG = """
import sys, time
from pathlib import Path
from morphogen.store.files import atomic, scratch
place = Path(sys.argv[1])
with atomic(place / "f") as file, scratch("morphogen-test-") as folder:
    (folder / "checkpoint").write_text("x")
    file.write(b"half")
    print(folder, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_can_be_read_by_whom_the_umask_allows(
    mask: int, mode: int, tmp_path: Path, umask: Callable[[int], int]
) -> None:
    umask(mask)
    for _ in range(2):
        write_atomic(tmp_path / "f", b"x")
        assert (tmp_path / "f").stat().st_mode & 0o777 == mode


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("f" * 255), b"x")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_what_a_killed_process_left_goes_and_what_one_is_writing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / ".somebodys.tmp").touch()
    (tmp_path / "morphogen-test-strange").mkdir()

    def left() -> int:
        return len([path for path in tmp_path.iterdir() if path.name.startswith((".f.", "morphogen-test-"))])

    with subprocess.Popen([sys.executable, "-c", HANG, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert (Path(process.stdout.readline().strip()) / IN_USE).is_file()
        remove_stale(tmp_path)
        with scratch("morphogen-test-"):
            assert left() == 4
        assert left() == 3
        process.send_signal(signal.SIGKILL)
    remove_stale(tmp_path)
    with scratch("morphogen-test-") as mine:
        assert left() == 2
        remove_stale(tmp_path)
        assert mine.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".somebodys.tmp", "morphogen-test-strange"]


def test_an_interrupt_in_the_middle_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"old")

    def interrupted() -> None:
        with atomic(tmp_path / "f") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    value=st.recursive(scalars | texts, lambda inner: st.lists(inner) | st.dictionaries(texts | st.integers(), inner)),
    indent=st.sampled_from([None, 1, 2]),
)
def test_json_is_what_the_standard_library_writes(value: Any, indent: int | None) -> None:
    separators = (",", ":" if indent is None else ": ")
    try:
        told = json.dumps(value, indent=indent, sort_keys=True, separators=separators, ensure_ascii=False)
    except TypeError:  # keys that have no order
        told = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False)
        assert canonical_json(value, indent, sort_keys=False) == told
    else:
        assert canonical_json(value, indent) == told


def test_json_has_no_numbers_that_are_not_finite() -> None:
    said = {"b": [float("nan"), -float("inf")], "a": (1, {}), "c": {True: "\x00é"}}
    assert json.loads(canonical_json(said, 2)) == {"a": [1, {}], "b": ["NaN", "-Infinity"], "c": {"true": "\x00é"}}
