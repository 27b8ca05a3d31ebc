"""The ledger against kills, second writers, damage and full disks."""

import os
import random
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from morphogen.candidate import Candidate, Change, Edit, Inheritance, Report, Status, Tokens
from morphogen.errors import RunError
from morphogen.store.holding import Holder, hold, holder_of
from morphogen.store.ledger import FILE, Asked, Generation, Ledger, Reported, Retry, Start, Stop

CANDIDATE = Candidate(
    id="widen_ffn-1-3f9a",
    index=1,
    generation=1,
    blueprint={"name": "tiny é", "blocks": [{"id": "b0", "ffn": {"hidden": 96}}], "vocab": None},
    parents=("seed-0-aaaa",),
    edits=(
        Edit(
            operator="widen_ffn",
            target="b0",
            preserves=True,
            changes=(Change(path="blocks.b0.ffn.hidden", before=64, after=96),),
        ),
    ),
)
REPORT = Report(
    id=CANDIDATE.id,
    status=Status.FAILED,
    reason='not finite: "loss"\nat step 3',
    metrics={"bpb": float("inf"), "ppl": 0.1 + 0.2, "tiny": 5e-324, "minus": float("-inf")},
    timed={"throughput": 1234.5},
    tokens=Tokens(own=1, lineage=2, unique=2),
    inheritance=Inheritance(inherited=10, resized=4, fresh=2, exact=True, notes=("a",)),
)
EVENTS = [
    Start(run="demo", seed=3, experiment={"train": {"lr": 3e-3}}),
    Asked(generation=1, candidates=(CANDIDATE,)),
    Reported(report=REPORT),
    Generation(generation=1, survivors=("a",), frontier=("a",), hypervolume=0.25, reference={"bpb": 4.4, "x": -1.0}),
    Stop(reason="done"),
]


def test_every_kind_of_event_comes_back_equal_and_in_order(tmp_path):
    with Ledger.open(tmp_path / "run", create=True) as ledger:
        assert [ledger.append(event) for event in EVENTS] == [1, 2, 3, 4, 5]
        assert list(ledger.events()) == EVENTS
    with Ledger.open(tmp_path / "run") as ledger:
        assert list(ledger.events()) == EVENTS
        assert ledger.append(Stop(reason="again")) == 6
    with Ledger.open(tmp_path / "run", readonly=True) as ledger:
        assert list(ledger.events()) == [*EVENTS, Stop(reason="again")]


def test_nan_comes_back_as_nan(tmp_path):
    with Ledger.open(tmp_path, create=True) as ledger:
        ledger.append(Reported(report=REPORT.replace(metrics={"bpb": float("nan")})))
        (event,) = ledger.events()
        assert event.report.metrics["bpb"] != event.report.metrics["bpb"]


def test_writes_are_durable_by_setting(tmp_path):
    with Ledger.open(tmp_path, create=True) as ledger:
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)


WRITER = """
import sys
from pathlib import Path
from morphogen.store.ledger import Ledger, Stop
with Ledger.open(Path(sys.argv[1]), create=len(sys.argv) > 2) as ledger:
    print("open", flush=True)
    while True:
        print(ledger.append(Stop(reason="x" * 3000)), flush=True)
"""


def test_kill_9_at_random_moments_keeps_every_acknowledged_event_and_no_half_one(tmp_path):
    rng, kept = random.Random(0), 0
    for attempt in range(8):
        arguments = [sys.executable, "-c", WRITER, str(tmp_path / "run"), *(["new"] if attempt == 0 else [])]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        wanted, acknowledged = rng.randrange(1, 60), kept
        for _ in range(wanted):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")[:-1]  # whole lines that were acknowledged before the kill arrived
        acknowledged = int(rest[-1]) if rest else acknowledged
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        with Ledger.open(tmp_path / "run") as ledger:  # the dead writer's lock is free again; the chain holds
            events = list(ledger.events())
        assert acknowledged <= len(events) <= acknowledged + 1
        assert all(event == Stop(reason="x" * 3000) for event in events)
        assert acknowledged >= kept + wanted
        kept = len(events)


def test_a_second_writer_is_refused_with_the_first_ones_process_and_readers_are_not(tmp_path):
    arguments = [sys.executable, "-c", WRITER, str(tmp_path), "new"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(4):
            process.stdout.readline()
        for create in (False, True):
            with pytest.raises(RunError, match=rf"another writer has this run open \(process {process.pid} on .+\)"):
                Ledger.open(tmp_path, create=create)
        with Ledger.open(tmp_path, readonly=True) as reader:
            before = len(list(reader.events()))
            assert before >= 3
            for _ in range(20):
                process.stdout.readline()
            assert len(list(reader.events())) > before  # follows along while the writer writes
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    Ledger.open(tmp_path).close()


def test_who_holds_a_lock_is_told_as_data_and_of_one_that_does_not_say_nothing_is_made_up(tmp_path):
    assert holder_of(tmp_path, "x.lock") is None
    with hold(tmp_path, "x.lock", "run"):
        assert holder_of(tmp_path, "x.lock") == (os.getpid(), socket.gethostname())
    assert holder_of(tmp_path, "x.lock") is None
    for text in (
        "",
        "process 12 on host",
        "[1]",
        '{"pid": "12", "host": "a"}',
        '{"pid": true, "host": "a"}',
        "[" * 9999,
    ):
        assert str(Holder.read(text)) == "unknown process"


def test_a_second_writer_in_the_same_process_is_refused_until_the_first_closes(tmp_path):
    first = Ledger.open(tmp_path, create=True)
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        Ledger.open(tmp_path)
    first.append(Stop(reason="still writing"))
    first.close()
    Ledger.open(tmp_path).close()


def test_a_reader_cannot_write(tmp_path):
    Ledger.open(tmp_path, create=True).close()
    with Ledger.open(tmp_path, readonly=True) as reader, pytest.raises(RunError, match="opened for reading only"):
        reader.append(Stop(reason="x"))


def test_create_refuses_a_run_with_events_and_takes_over_an_empty_one(tmp_path):
    Ledger.open(tmp_path, create=True).close()
    with Ledger.open(tmp_path, create=True) as ledger:
        ledger.append(EVENTS[0])
    with pytest.raises(RunError, match="holds a run of 1 events; resume it or choose another folder"):
        Ledger.open(tmp_path, create=True)
    with Ledger.open(tmp_path) as ledger:
        assert list(ledger.events()) == EVENTS[:1]


def sql(folder, *statements):
    connection = sqlite3.connect(folder / FILE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def filled(folder):
    with Ledger.open(folder, create=True) as ledger:
        for event in EVENTS:
            ledger.append(event)
    return folder


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE events SET payload = replace(payload, 'FAILED', 'x') || ' ' WHERE seq = 3", "damaged at event 3"),
        ("UPDATE events SET kind = 'stop' WHERE seq = 2", "damaged at event 2"),
        ("DELETE FROM events WHERE seq = 2", "damaged at event 2"),
        ("PRAGMA user_version = 9", "ledger schema version 9, this morphogen reads version 1"),
        ("PRAGMA application_id = 5", "is a database, but not a morphogen ledger"),
        ("DROP TABLE events", "holds something else than a ledger's events"),
        ("CREATE VIEW more AS SELECT * FROM events", "holds something else than a ledger's events"),
        (
            "CREATE TRIGGER meddles AFTER INSERT ON events BEGIN DELETE FROM events; END",
            "holds something else than a ledger's events",
        ),
    ],
)
def test_damage_and_other_versions_are_refused_and_left_as_they_are(tmp_path, statement, message):
    sql(filled(tmp_path), statement)
    before = (tmp_path / FILE).read_bytes()
    for readonly in (False, True):
        with pytest.raises(RunError, match=message), Ledger.open(tmp_path, readonly=readonly) as ledger:
            list(ledger.events())
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"not a database, but a text of some length" * 40, b"", b"SQLite format 3\0" + b"\7" * 500]
)
def test_a_file_that_is_no_ledger_is_refused_untouched(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    for readonly in (False, True):
        with pytest.raises(RunError, match=r"ledger\.sqlite: (cannot be used as a run's ledger|is a database, but)"):
            Ledger.open(tmp_path, readonly=readonly)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_cut_off_ledger_is_refused(tmp_path):
    with Ledger.open(tmp_path, create=True) as ledger:
        for _ in range(30):
            ledger.append(Stop(reason="y" * 2000))
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(RunError), Ledger.open(tmp_path, readonly=True) as ledger:
        list(ledger.events())


def test_a_foreign_database_is_not_turned_into_a_ledger(tmp_path):
    sql(tmp_path, "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(RunError, match="not a morphogen ledger"):
        Ledger.open(tmp_path, create=True)


def test_missing_folder_and_unusable_folder(tmp_path):
    with pytest.raises(RunError, match=r"no run here \(ledger\.sqlite is missing\)"):
        Ledger.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make the run folder"):
        Ledger.open(tmp_path / "file" / "run", create=True)


def test_a_full_disk_is_one_message_and_keeps_what_was_written(tmp_path):
    with Ledger.open(tmp_path, create=True) as ledger:
        ledger.append(EVENTS[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(RunError, match=r"event 2 \(stop\) could not be written: "):
                ledger.append(Stop(reason="z" * 1_000_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert ledger.append(Stop(reason="room again")) == 2
    with Ledger.open(tmp_path) as ledger:
        assert list(ledger.events()) == [EVENTS[0], Stop(reason="room again")]


def test_a_finished_run_can_be_read_in_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with Ledger.open(tmp_path, readonly=True) as ledger:
        assert list(ledger.events()) == EVENTS
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["ledger.lock", "ledger.sqlite"]


def test_a_retry_takes_back_what_came_after_its_generation_was_asked_for(tmp_path: Path) -> None:
    def report(id: str, rung: int = 1, status: Status = Status.TRAINED) -> Reported:
        return Reported(report=Report(id=id, rung=rung, status=status))

    asked = [
        Asked(generation=n, candidates=tuple(Candidate(id=id, index=k, generation=n, blueprint={}) for k, id in of))
        for n, of in enumerate([[(0, "a")], [(1, "b"), (2, "c")], [(3, "d")]])
    ]
    closed = Generation(generation=0, survivors=("a",), frontier=("a",), hypervolume=1.0, reference={})
    kept = [Start(run="x", seed=0, experiment={}), asked[0], report("a"), closed, asked[1], report("b")]
    lost = [report("c", status=Status.FAILED), report("b", 2), closed.replace(generation=1), asked[2], Stop(reason="x")]
    with Ledger.open(tmp_path, create=True) as ledger:
        for event in [*kept, *lost, Retry(generation=1, candidates=("c",)), report("c")]:
            ledger.append(event)
        assert list(ledger.events()) == [*kept, report("c")]
        assert len(list(ledger.written())) == len(kept) + len(lost) + 2
        ledger.append(Retry(generation=7, candidates=()))
        with pytest.raises(RunError, match="a retry of generation 7, which was never asked for"):
            list(ledger.events())
