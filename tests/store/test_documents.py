"""frontier.json and lineage.json: contents, bytes, readers, and files that survive a failed write."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from morphogen.candidate import Candidate, Change, Edit, GrowthEvent, Report, Size, Status, Tokens
from morphogen.errors import InputError, RunError
from morphogen.store.files import canonical_json, write_atomic
from morphogen.store.frontier import Entry, Frontier, build_frontier
from morphogen.store.lineage import Lineage, Node, build_lineage

WIDEN = Edit(
    operator="widen_ffn",
    target="b0",
    preserves=True,
    changes=(Change(path="blocks.b0.ffn.hidden", before=64, after=96),),
)
CROSS = Edit(operator="xover", target="blocks", preserves=False, sources={"b0": 0, "b1": 1})


def candidate(id, index, generation, parents=(), edits=()):
    return Candidate(id=id, index=index, generation=generation, blueprint={"name": id}, parents=parents, edits=edits)


CANDIDATES = {
    c.id: c
    for c in [
        candidate("xover-4-d", 4, 2, ("widen_ffn-1-b", "seed-0-a"), (CROSS, WIDEN)),
        candidate("seed-0-a", 0, 0),
        candidate("widen_ffn-1-b", 1, 1, ("seed-0-a",), (WIDEN,)),
        candidate("copy-2-a", 2, 1, ("seed-0-a",)),
        candidate("swap-3-c", 3, 1, ("seed-0-a",), (WIDEN,)),
        candidate("late-5-e", 5, 3, ("xover-4-d",), (WIDEN,)),
    ]
}
REPORTS = {
    r.id: r
    for r in [
        Report(id="seed-0-a", status=Status.TRAINED, rung=2, metrics={"bpb": 3.0}, timed={"throughput": 10.0}),
        Report(
            id="widen_ffn-1-b",
            status=Status.TRAINED,
            metrics={"bpb": 2.5},
            costs={"params": 7.0},
            timed={"throughput": 9.0},
            tokens=Tokens(own=5, lineage=10, unique=8),
            checkpoint="checkpoints/widen_ffn-1-b.safetensors",
        ),
        Report(id="copy-2-a", status=Status.GATED, reason="ppl 900 above 500", metrics={"bpb": 9.0}),
        Report(id="swap-3-c", status=Status.REJECTED, reason="params 9 above 5", stop_reason=0),
        Report(id="xover-4-d", status=Status.FAILED, reason="not finite", metrics={"bpb": float("nan")}),
    ]
}
IDS = ["widen_ffn-1-b", "seed-0-a"]


def frontier(reports=REPORTS):
    return build_frontier("demo", {"bpb": "min", "params": "min"}, 0.5, CANDIDATES, reports, IDS)


def lineage(reports=REPORTS, candidates=CANDIDATES):
    return build_lineage("demo", candidates, reports, IDS)


def test_frontier_has_the_agreed_keys_in_order_of_index():
    data = json.loads(frontier().to_json())
    assert set(data) == {"schema_version", "run", "objectives", "hypervolume", "candidates"}
    assert [entry["id"] for entry in data["candidates"]] == ["seed-0-a", "widen_ffn-1-b"]
    agreed = "id blueprint parents edits metrics costs tokens flops inheritance checkpoint status timed"
    assert all(set(entry) == set(agreed.split()) for entry in data["candidates"])
    assert data["candidates"][1]["tokens"] == {"own": 5, "lineage": 10, "unique": 8}
    assert data["candidates"][1]["edits"][0]["changes"] == [{"path": "blocks.b0.ffn.hidden", "before": 64, "after": 96}]


def test_lineage_holds_everyone_with_status_reason_and_typed_edges():
    data = json.loads(lineage().to_json())
    assert set(data) == {"schema_version", "run", "nodes", "edges"}
    assert [(n["id"], n["status"], n["reason"], n["frontier"]) for n in data["nodes"]] == [
        ("seed-0-a", "trained", "", True),
        ("widen_ffn-1-b", "trained", "", True),
        ("copy-2-a", "gated", "ppl 900 above 500", False),
        ("swap-3-c", "rejected", "params 9 above 5", False),
        ("xover-4-d", "failed", "not finite", False),
        ("late-5-e", "proposed", "", False),
    ]
    assert [(e["parent"], e["child"], e["kind"], len(e["edits"])) for e in data["edges"]] == [
        ("seed-0-a", "widen_ffn-1-b", "mutation", 1),
        ("seed-0-a", "copy-2-a", "copy", 0),
        ("seed-0-a", "swap-3-c", "mutation", 1),
        ("widen_ffn-1-b", "xover-4-d", "crossover", 2),
        ("seed-0-a", "xover-4-d", "crossover", 2),
        ("xover-4-d", "late-5-e", "mutation", 1),
    ]
    assert set(data["edges"][0]) == {"parent", "child", "kind", "edits"}


def test_two_runs_compare_equal_without_timed():
    other = {id: report.replace(timed={"throughput": 99.0, "peak_memory_bytes": 1.0}) for id, report in REPORTS.items()}

    def untimed(text):
        data = json.loads(text)
        for entry in data["nodes" if "nodes" in data else "candidates"]:
            del entry["timed"]
        return data

    for build in (frontier, lineage):
        assert build().to_json() != build(other).to_json()
        assert untimed(build().to_json()) == untimed(build(other).to_json())


def test_bytes_do_not_depend_on_insertion_order_or_hash_seed(tmp_path):
    reordered = lineage(dict(reversed(REPORTS.items())), dict(reversed(CANDIDATES.items())))
    assert reordered.to_json() == lineage().to_json()
    lineage().write(tmp_path / "lineage.json")
    code = (
        "import sys;from pathlib import Path;from morphogen.store.lineage import Lineage, build_lineage;"
        "l=Lineage.read(Path(sys.argv[1]));c,r=l.records();"
        "sys.stdout.write(build_lineage(l.run,c,r,set(l.frontier)).to_json())"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "lineage.json")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert done.stdout == (tmp_path / "lineage.json").read_bytes()


def test_files_come_back_equal_and_are_valid_strict_json(tmp_path):
    for document in (frontier(), lineage()):
        document.write(tmp_path / "x.json")

        def forbid(constant):
            raise AssertionError(f"{constant} is not JSON")

        json.loads((tmp_path / "x.json").read_text(), parse_constant=forbid)
        assert type(document).read(tmp_path / "x.json").to_json() == document.to_json()


def test_lineage_gives_back_the_records_it_was_built_from():
    candidates, reports = lineage().records()
    assert candidates == {id: c.replace(blueprint={}) for id, c in CANDIDATES.items()}
    assert reports["late-5-e"].status is Status.PROPOSED
    known = {id: report.replace(checkpoint=None) for id, report in REPORTS.items() if id != "xover-4-d"}
    assert {id: reports[id] for id in known} == known
    assert lineage().frontier == ("seed-0-a", "widen_ffn-1-b")


def test_json_schema_names_every_field():
    assert set(Frontier.json_schema()["properties"]) == set(Frontier.model_fields)
    assert set(Lineage.json_schema()["$defs"]["Node"]["properties"]) == set(Node.model_fields)
    entry = Frontier.json_schema()["$defs"]["Entry"]
    assert set(entry["properties"]) == set(Entry.model_fields)
    assert set(entry["required"]) == {name for name, field in Entry.model_fields.items() if field.is_required()}


TEXT = lineage().to_json()
BAD = {
    "truncated": (TEXT[: len(TEXT) // 2], r"lineage\.json:\d+:\d+ not a whole JSON file"),
    "empty": ("", r":1:1 not a whole JSON file"),
    "a list": ("[]", "not a lineage: schema_version is missing"),
    "other version": (
        TEXT.replace('"schema_version": 1', '"schema_version": 2'),
        "schema_version 2, this morphogen reads",
    ),
    "unknown field": (TEXT.replace('"run":', '"ran":'), r"lineage\.json: (run|ran): "),
    "wrong type": (TEXT.replace('"generation": 3', '"generation": "three"'), r"nodes\.5\.generation: Input should be"),
    "unknown status": (TEXT.replace('"status": "gated"', '"status": "stuck"'), r"nodes\.2\.status"),
    "dangling edge": (TEXT.replace('"parent": "xover-4-d"', '"parent": "gone"'), "there is no node 'gone'"),
    "edge to itself": (TEXT.replace('"parent": "xover-4-d"', '"parent": "late-5-e"'), "the parent is not older"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_one_clear_message(tmp_path, text, message):
    assert text != TEXT
    (tmp_path / "lineage.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Lineage.read(tmp_path / "lineage.json")
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the frontier: No such file"):
        Frontier.read(tmp_path / "frontier.json")
    (tmp_path / "frontier.json").write_bytes(b"\xff\xfe{}\x80")
    with pytest.raises(InputError, match=r"not a JSON file|not a whole JSON file"):
        Frontier.read(tmp_path / "frontier.json")


# ---------------------------------------------------------------- write_atomic


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for data in (b"old", b"new"):
        write_atomic(tmp_path / "f", data)
        assert (tmp_path / "f").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    write_atomic(tmp_path / "f", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(RunError, match=r"f: cannot write 50000 bytes: File too large"):
            write_atomic(tmp_path / "f", b"x" * 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file_whole(tmp_path, monkeypatch, step):
    write_atomic(tmp_path / "f", b"old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError, match=r"cannot write 3 bytes: No space left on device"):
        write_atomic(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write 1 bytes: Not a directory"):
        write_atomic(tmp_path / "file" / "f", b"x")


READ_ONLY = """
import os, sys
from pathlib import Path
from morphogen.errors import RunError
from morphogen.store.files import write_atomic
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
try:
    write_atomic(folder / "f", b"new")
except RunError as error:
    print(error)
"""


def test_a_read_only_folder_keeps_its_file():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_atomic(folder / "f", b"old")
        folder.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", READ_ONLY, name], capture_output=True, text=True)
        folder.chmod(0o755)
        assert done.stderr == ""
        assert done.stdout.strip().endswith("f: cannot write 3 bytes: Permission denied")
        assert (folder / "f").read_bytes() == b"old"


def test_canonical_json_is_sorted_exact_and_strict():
    assert canonical_json({"b": 0.1 + 0.2, "a": (1, float("nan"), float("-inf"), "é")}) == (
        '{"a":[1,"NaN","-Infinity","é"],"b":0.30000000000000004}'
    )


def test_what_a_candidate_grew_into_and_when_stands_in_both_files() -> None:
    before, after = (Size(params=p, layers=1, dim=8, flops_per_token=2.0 * p, experts={"b0": 2}) for p in (10, 14))
    event = GrowthEvent(
        steps=30,
        tokens=960,
        own_steps=10,
        rule="rule0",
        trigger="step",
        action="widen",
        reason="30 steps",
        blocks=("b0",),
        before=before,
        after=after,
        loss=2.0,
        loss_after=2.0,
        max_delta=0.0,
        max_logit=3.0,
        exact=True,
        edit=WIDEN,
    )
    grown = Report(id="seed-0-a", status=Status.TRAINED, blueprint={"name": "wider"}, growth=(event,))
    reports = {grown.id: grown, "widen_ffn-1-b": REPORTS["widen_ffn-1-b"]}
    entry = build_frontier("run", {}, 0.0, CANDIDATES, reports, [grown.id]).candidates[0]
    assert (entry.blueprint, entry.growth) == ({"name": "wider"}, (event,))
    lineage = build_lineage("run", CANDIDATES, reports, [grown.id])
    assert Lineage.model_validate_json(lineage.model_dump_json()).records()[1][grown.id].growth == (event,)
    assert Report.model_validate_json(grown.model_dump_json()) == grown
    silent = [REPORTS["widen_ffn-1-b"].model_dump(), lineage.model_dump(mode="json")["nodes"][1]]
    assert not any("growth" in record for record in silent)
