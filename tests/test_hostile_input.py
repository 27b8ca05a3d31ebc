"""Bad inputs to every command: exit 2, one message that names the place, nothing on disk changed.

Files, folders, ledgers and checkpoints here are made to harm: to write elsewhere, to run code, to take forever. What is
merely mistaken is in test_bad_input.py.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from morphogen.cli.commands import app_with, name_of
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.run import evolve, load
from morphogen.store.ledger import _digest
from tiny import Cli, write_config

pytestmark = [pytest.mark.usefixtures("own_cache", "no_code"), pytest.mark.trained_before]

#: Changes the folder of a test, which holds `tiny.yaml`, its corpus, a finished `run`, and a folder `outside`.
Prepare = Callable[[Path], object]
#: What is done to the folder, the arguments (`@` is the folder), what the message says.
Case = tuple[Prepare, str, str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    evolve(load(write_config(folder)), folder / "run", generations=1)
    (folder / "outside").mkdir()
    (folder / "outside" / "precious").write_text("precious")
    (folder / "outside" / "theirs.safetensors").write_text("precious")
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


def tree(folder: Path) -> dict[str, str]:
    """Everything below `folder`: what it is, and its bytes; SQLite's side files and the lock come and go."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        what = os.readlink(path) if stat.S_ISLNK(mode) else ""
        if stat.S_ISREG(mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        if not (stat.S_ISREG(mode) and path.name.endswith(("-wal", "-shm", ".lock"))):
            found[str(path.relative_to(folder))] = f"{stat.S_IFMT(mode):o} {what}"
    return found


# ------------------------------------------------------------------------------------------- what is done to folders


def nothing(place: Path) -> None:
    """Nothing."""


def text(name: str, content: str | bytes) -> Prepare:
    def write(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        (place / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def link(name: str, to: str = "outside/precious") -> Prepare:
    def make(place: Path) -> None:
        _clear(place / name)
        (place / name).symlink_to(place / to)

    return make


def hard_link(name: str) -> Prepare:
    def make(place: Path) -> None:
        _clear(place / name)
        os.link(place / "outside" / "precious", place / name)

    return make


def pipe(name: str) -> Prepare:
    def make(place: Path) -> None:
        _clear(place / name)
        os.mkfifo(place / name)

    return make


def directory(name: str) -> Prepare:
    def make(place: Path) -> None:
        _clear(place / name)
        (place / name).mkdir()

    return make


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def changed(name: str, change: Callable[[Any], object]) -> Prepare:
    """A JSON file of the run with something changed in it."""

    def write(place: Path) -> None:
        data = json.loads((place / name).read_bytes())
        change(data)
        (place / name).write_text(json.dumps(data))

    return write


def forged(kind: str, change: Callable[[Any], object]) -> Prepare:
    """A ledger in which the events of a kind are others, every hash being right."""

    def rewrite(payload: str) -> str:
        data = json.loads(payload)
        made = change(data)
        return made if isinstance(made, str) else json.dumps(data)

    def write(place: Path) -> None:
        connection = sqlite3.connect(place / "run" / "ledger.sqlite", isolation_level=None)
        before = ""
        for seq, found, payload, _ in connection.execute("SELECT * FROM events ORDER BY seq").fetchall():
            payload = rewrite(payload) if found == kind else payload
            before = _digest(before, found, payload)
            connection.execute("UPDATE events SET payload = ?, sha = ? WHERE seq = ?", (payload, before, seq))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    return write


def sql(statement: str) -> Prepare:
    def run(place: Path) -> None:
        connection = sqlite3.connect(place / "run" / "ledger.sqlite", isolation_level=None)
        connection.executescript(statement)
        connection.close()

    return run


def config(old: str, new: str) -> Prepare:
    def write(place: Path) -> None:
        path = place / "tiny.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new.replace("@", str(place)), 1))

    return write


def starts_from(make: Callable[[Path, Path], object]) -> Prepare:
    """An experiment that starts from a checkpoint, which `make(good, bad)` writes."""

    def write(place: Path) -> None:
        good = next((place / "run" / "checkpoints").glob("root-*[0-9a-f].safetensors"))  # without its moments
        make(good, place / "bad.safetensors")
        config("lr: 0.01", "lr: 0.01, init_checkpoint: @/bad.safetensors")(place)

    return write


def header(fields: str | bytes, data: bytes = b"", length: int | None = None) -> Prepare:
    """A checkpoint made of a header as it is given."""
    raw = fields.encode() if isinstance(fields, str) else fields
    size = struct.pack("<Q", len(raw) if length is None else length)
    return starts_from(lambda good, bad: bad.write_bytes(size + raw + data))


def tensors(data: int, **entries: tuple[str, list[int], list[int]]) -> Prepare:
    """A checkpoint of ours, of so many bytes, that holds tensors by (kind of number, shape, where their bytes are)."""
    told = {name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) for name, entry in entries.items()}
    return header(json.dumps({"__metadata__": {"format": "morphogen-checkpoint-1"}, **told}), bytes(data))


def described(blueprint: str) -> Prepare:
    """A checkpoint with right weights and checksum, and a blueprint as it is given."""

    def make(good: Path, bad: Path) -> None:
        from morphogen.inherit.checkpoint import FORMAT, checksum

        state, _, extra = load_checkpoint(good)
        metadata = {**extra, "format": FORMAT, "blueprint": blueprint}
        save_file(state, bad, {**metadata, "crc32": str(checksum(state, metadata))})

    return starts_from(make)


def in_other_numbers(good: Path, bad: Path) -> None:
    from morphogen.inherit.checkpoint import save_checkpoint

    state, blueprint, extra = load_checkpoint(good)
    save_checkpoint(bad, {name: tensor.to(torch.int64) for name, tensor in state.items()}, blueprint, extra)


def called(id: str) -> Callable[[Any], object]:
    """The root of a ledger's first generation under another name."""
    return lambda event: event["candidates"][0].update(id=id)


def with_part(part: dict[str, Any]) -> Callable[[Any], object]:
    return lambda event: event["candidates"][0]["blueprint"]["blocks"][0].update(part)


CODE = {"extras": [{"kind": "custom", "name": "antigravity:X", "params": {}}]}
GONE = {"extras": [{"kind": "custom", "name": "gone", "params": {}}]}
SMALL = {"ffn": {"kind": "dense", "hidden": 9}}
NOBODY = forged("generation", lambda event: event.update(frontier=["x"]))
GONE_KIND = {"attn": {"kind": "gone", "heads": 2}}
IN_YAML = config("      ffn:", "      extras: [{kind: custom, name: 'antigravity:X'}]\n      ffn:")
DEEP = "[" * 100_000
OLDER = (
    "{model: {emb: {dim: 8}, blocks: [{ffn: {hidden: 8}}], head: {vocab: 9}}, train: {lr: 1}, "
    "data: {tokenizer: x, shards: [{name: y}]}}"
)
RESUME = "run @/tiny.yaml --out @/run --resume"
RUN = "run @/tiny.yaml --out @/new"
LINEAGE, FRONTIER = "run/lineage.json", "run/frontier.json"

CASES: dict[str, Case] = {
    # -------------------------------------------------------------------------------------------------------- code
    "validate names code": (IN_YAML, "validate @/tiny.yaml", "tiny.yaml:6:31 model.blocks[0].extras[0].name: plug-in"),
    "explain names code": (IN_YAML, "explain @/tiny.yaml", "--allow-code"),
    "operators names code": (IN_YAML, "operators @/tiny.yaml", "--allow-code"),
    "run names code": (IN_YAML, RUN, "--allow-code"),
    "a rehearsal names code": (IN_YAML, f"{RUN} --dry-run", "--allow-code"),
    "a template names code": (
        config("topk_keep: 2", "topk_keep: 2, templates: [{name: t, actions: [{operator: tune_custom_module, set: "
               "{name: 'antigravity:X'}}]}]"),
        "validate @/tiny.yaml",
        "--allow-code",
    ),
    "a ledger names code: verify": (forged("asked", with_part(CODE)), "verify @/run", "names code"),
    "a ledger names code: fidelity": (forged("asked", with_part(CODE)), "fidelity @/run", "names code"),
    "a ledger names code: resume": (forged("asked", with_part(CODE)), RESUME, "names code"),
    "a checkpoint names code": (
        described(json.dumps({"emb": {"dim": 8, "vocab": 9}, "blocks": [CODE]})),
        RUN,
        "bad.safetensors: its blueprint cannot be read",
    ),
    "a plug-in is gone: verify": (forged("asked", with_part(GONE)), "verify @/run", "plug-in gone: no installed"),
    "a plug-in is gone: fidelity": (forged("asked", with_part(GONE)), "fidelity @/run", "plug-in gone"),
    "a plug-in is gone: resume": (forged("asked", with_part(GONE)), RESUME, "plug-in gone"),
    "a kind is gone: verify": (forged("asked", with_part(GONE_KIND)), "verify @/run", "blocks[0].attn: got 'gone'"),
    "a kind is gone: resume": (forged("asked", with_part(GONE_KIND)), RESUME, "blocks[0].attn: got 'gone'"),
    # ------------------------------------------------------------------------------------- a stranger's run folder
    **{
        f"{name} is a link": (link(f"run/{name}"), RESUME, f"run/{name}: is a link to ")
        for name in (
            "ledger.lock",
            "ledger.sqlite",
            "ledger.sqlite-wal",
            "ledger.sqlite-shm",
            "run.log",
            "environment.json",
            "experiment.yaml",
            "events.csv",
            "frontier.json",
            "lineage.json",
            "lineage.svg",
            "report.html",
            "verify.json",
        )
    },
    "a link that dangles": (link("run/run.log", "outside/new"), RESUME, "run/run.log: is a link to "),
    "the lock is a hard link": (hard_link("run/ledger.lock"), RESUME, "run/ledger.lock: has another name elsewhere"),
    "the log is a hard link": (hard_link("run/run.log"), RESUME, "run/run.log: has another name elsewhere"),
    "the log is a pipe": (pipe("run/run.log"), RESUME, "run/run.log: is a pipe"),
    "the lock is a pipe": (pipe("run/ledger.lock"), RESUME, "run/ledger.lock: is a pipe"),
    "the log is a folder": (directory("run/run.log"), RESUME, "run/run.log: is a folder"),
    "the environment is a pipe": (pipe("run/environment.json"), RESUME, "environment.json: is a pipe"),
    "checkpoints are a link": (link("run/checkpoints", "outside"), RESUME, "run/checkpoints: is a link to "),
    "checkpoints to be pruned are a link": (
        link("run/checkpoints", "outside"),
        f"{RESUME} --generations 2 --prune-checkpoints-to-frontier --cleanup-old-checkpoints",
        "run/checkpoints: is a link to ",
    ),
    "a rehearsal of checkpoints that are a link": (
        link("run/checkpoints", "outside"),
        f"{RESUME} --dry-run",
        "run/checkpoints: is a link to ",
    ),
    "trials are a link": (link("run/trials", "outside"), "verify @/run --random 0 --seeds 2", "run/trials: is a link"),
    # ------------------------------------------------------------------------------------------------------ ledgers
    **{
        f"a candidate called {what}": (forged("asked", called(id)), RESUME, "candidates.0.id")
        for what, id in {
            "a path above": "../../outside/precious",
            "an absolute path": "/tmp/x",
            "with a slash": "a/b",
            "with NUL": "a\0b",
            "at length": "a" * 5000,
            "hidden": ".run",
            "with an escape": "a\x1b[2J",
            "as an option": "-rf",
            "nothing": "",
        }.items()
    },
    "a ledger with such a name, looked at": (forged("asked", called("../x")), "status @/run", "candidates.0.id"),
    "weights outside": (
        forged("report", lambda event: event["report"].update(checkpoint="../outside/theirs.safetensors")),
        RESUME,
        "report.checkpoint",
    ),
    "a survivor that is nobody": (forged("generation", lambda e: e.update(survivors=["x"])), RESUME, "x, which is no"),
    "a frontier of nobody": (NOBODY, "verify @/run", "x, which is no"),
    "a frontier of nobody, looked at": (NOBODY, "status @/run", "x is on the frontier"),
    "a parent that is nobody": (
        forged("asked", lambda event: event["candidates"][0].update(parents=["x"])),
        RESUME,
        "parent x",
    ),
    "the millionth generation": (forged("asked", lambda e: e.update(generation=10**6)), "verify @/run", "1000000"),
    "an event nested beyond use": (forged("report", lambda event: DEEP), "status @/run", "event 3 (report)"),
    "an event that is a list": (forged("report", lambda event: "[]"), "status @/run", "event 3 (report)"),
    "a number of 5,000 digits": (forged("report", lambda e: f'{{"a": {"9" * 5000}}}'), "status @/run", "event 3"),
    "half a character": (forged("report", lambda e: r'{"report": "\ud800"}'), "status @/run", "event 3 (report)"),
    "no settings": (forged("start", lambda event: event.update(experiment={})), "status @/run", "evolution"),
    "settings of the wrong kind": (
        forged("start", lambda event: event["experiment"]["evolution"].update(generations="many")),
        "status @/run",
        "evolution.generations",
    ),
    "an endless view": (
        sql(
            "DROP TABLE events; CREATE VIEW events AS WITH RECURSIVE n(seq, kind, payload, sha) AS "
            "(SELECT 1, '', '', '' UNION ALL SELECT seq + 1, '', '', '' FROM n) SELECT * FROM n"
        ),
        "status @/run",
        "holds something else than a ledger's events",
    ),
    "a ledger that is a pipe": (pipe("run/ledger.sqlite"), "status @/run", "ledger.sqlite"),
    "a ledger that is a folder": (directory("run/ledger.sqlite"), "status @/run", "ledger.sqlite"),
    "a report of a ledger that is a pipe": (pipe("run/ledger.sqlite"), "report @/run", "ledger.sqlite"),
    "a report of an environment nested beyond use": (
        text("run/environment.json", DEEP),
        "report @/run",
        "environment.json: cannot be read",
    ),
    "a report of an environment that is a list": (
        text("run/environment.json", "[]"),
        "report @/run",
        "environment.json: cannot be read: versions are missing",
    ),
    "a report of ablations nested beyond use": (
        text("run/ablation.json", DEEP),
        "report @/run",
        "ablation.json: cannot ",
    ),
    "a report of ablations that are a pipe": (
        pipe("run/ablation.json"),
        "report @/run",
        "ablation.json: is a pipe",
    ),
    "a report that is a link": (link("run/report.html"), "report @/run", "run/report.html: is a link to "),
    # ----------------------------------------------------------------------------------------------- lineage.json
    "a lineage nested beyond use": (text(LINEAGE, DEEP), "lineage @/run", "lineage.json: cannot be read"),
    "a lineage nested in a value": (
        text(LINEAGE, '{"schema_version": 1, "run": ' + DEEP),
        "lineage @/run --json",
        "lineage.json",
    ),
    "a lineage of bytes": (text(LINEAGE, os.urandom(64) + b"\xff" * 10**6), "lineage @/run", "lineage.json"),
    "an empty lineage": (text(LINEAGE, ""), "lineage @/run", "lineage.json:1:1"),
    "a lineage that is a number": (text(LINEAGE, "9" * 5000), "lineage @/run", "lineage.json"),
    "a lineage of NaN": (text(LINEAGE, "NaN"), "lineage @/run", "lineage.json"),
    "half a character in a lineage": (
        text(LINEAGE, r'{"schema_version": 1, "run": "\ud800", "nodes": [], "edges": []}'),
        "lineage @/run",
        "lineage.json: cannot be read",
    ),
    "a lineage that is a pipe": (pipe(LINEAGE), "lineage @/run", "lineage.json: cannot read the lineage: is a pipe"),
    "a lineage that is a folder": (directory(LINEAGE), "lineage @/run", "lineage.json: cannot read the lineage"),
    "a lineage of a later version": (
        changed(LINEAGE, lambda data: data.update(schema_version=2)),
        "lineage @/run",
        "schema_version 2",
    ),
    "a node whose name is a path": (
        changed(LINEAGE, lambda data: data["nodes"][0].update(id="../x")),
        "lineage @/run",
        "nodes.0.id",
    ),
    "a node twice": (
        changed(LINEAGE, lambda data: data["nodes"].append(data["nodes"][0])),
        "lineage @/run",
        "two nodes share an id",
    ),
    "a node of the wrong kind": (
        changed(LINEAGE, lambda data: data["nodes"][0].update(generation="first")),
        "lineage @/run",
        "nodes.0.generation",
    ),
    "a node beyond all numbers": (
        changed(LINEAGE, lambda data: data["nodes"][0].update(index=10**400)),
        "lineage @/run",
        "nodes.0.index",
    ),
    "a reason to stop that is none": (
        changed(LINEAGE, lambda data: data["nodes"][0].update(stop_reason=99)),
        "lineage @/run",
        "nodes.0.stop_reason",
    ),
    "a child of nobody": (
        changed(LINEAGE, lambda data: data["edges"][0].update(parent="nobody")),
        "lineage @/run --out @/a.svg",
        "there is no node 'nobody'",
    ),
    "its own parent": (
        changed(LINEAGE, lambda data: data["edges"][0].update(parent=data["edges"][0]["child"])),
        "lineage @/run --out @/a.dot",
        "the parent is not older than the child",
    ),
    "a circle": (
        changed(LINEAGE, lambda data: [node.update(index=0) for node in data["nodes"]]),
        "lineage @/run",
        "the parent is not older than the child",
    ),
    "a picture of no kind": (nothing, "lineage @/run --out @/a.exe", "expected one of .svg, .png"),
    "a picture where no folder is": (nothing, "lineage @/run --out @/no/a.svg", "a.svg"),
    "a picture in the place of a folder": (directory("a.svg"), "lineage @/run --out @/a.svg", "a.svg"),
    # ----------------------------------------------------------------------------------------------- frontier.json
    "a frontier nested beyond use": (text(FRONTIER, DEEP), "verify @/run/frontier.json", "frontier.json"),
    "a frontier that is a pipe": (pipe(FRONTIER), "verify @/run/frontier.json", "frontier.json"),
    "an ablation of a frontier with weights outside": (
        changed(FRONTIER, lambda data: data["candidates"][0].update(checkpoint="../../etc/passwd")),
        "ablate @/run/frontier.json",
        "candidates.0.checkpoint",
    ),
    "an ablation whose report is a link": (link("run/ablation.json"), "ablate @/run", "run/ablation.json: is a link"),
    "an ablation over something else": (nothing, "ablate @/run --out @/tiny.yaml", "a name that ends in .json"),
    "a seed of code": (forged("asked", with_part(CODE)), "seed @/run --id x --out-config @/a.yaml", "names code"),
    "a seed over something else": (nothing, "seed @/run --id root --out-config @/tiny.safetensors", "--id (of "),
    "a finetune of nobody": (nothing, "finetune @/run --steps 1 --id ../x", "--id (of "),
    "finetunes that are a link": (link("run/finetuned", "outside"), "finetune @/run --steps 1", "finetuned: is a link"),
    "an archive over something else": (nothing, "archive @/run --out @/outside", "holds something else than an arch"),
    "scaling up over something else": (
        nothing,
        "scale @/tiny.yaml --params 1M --out @/tiny.yaml",
        "tiny.yaml: is there already, and was not made by scale",
    ),
    "scaling up what names code": (IN_YAML, "scale @/tiny.yaml --params 1M", "--allow-code"),
    "motifs of a pipe": (pipe("run/ledger.sqlite"), "motifs @/run", "ledger.sqlite"),
    "motifs over something else": (nothing, "motifs @/run --out @/tiny.yaml", "tiny.yaml: there is a file that is no"),
    "scaling of a pipe": (pipe(FRONTIER), "scaling @/run", "frontier.json"),
    "scaling of a frontier nested beyond use": (text(FRONTIER, DEEP), "scaling @/run", "frontier.json"),
    "scaling over something else": (directory("a.png"), "scaling @/run --out @/a.png", "a.png: is a folder"),
    "a ledger names code: ablate": (forged("asked", with_part(CODE)), "ablate @/run", "names code"),
    "a frontier with weights outside": (
        changed(FRONTIER, lambda data: data["candidates"][0].update(checkpoint="../../etc/passwd")),
        "verify @/run/frontier.json",
        "candidates.0.checkpoint",
    ),
    "a frontier of strangers": (
        changed(FRONTIER, lambda data: data["candidates"][0].update(id="stranger")),
        "verify @/run/frontier.json",
        "stranger is no candidate",
    ),
    # ------------------------------------------------------------------------------------------- environment.json
    "an environment nested beyond use": (text("run/environment.json", DEEP), RESUME, "environment.json"),
    **{
        f"{name} of an environment of the wrong kind": (
            changed("run/environment.json", lambda data, name=name: data.update({name: 5})),  # type: ignore[misc]
            RESUME,
            f"environment.json: cannot be read: {name} is",
        )
        for name in ("data", "versions", "device", "commit", "paths")
    },
    # --------------------------------------------------------------------------------------------------- checkpoints
    "a header beyond the file": (header("{}", length=2**62), RUN, "bad.safetensors: not a readable checkpoint"),
    "a header that is no JSON": (header(b"\xff" * 64), RUN, "bad.safetensors: not a readable checkpoint"),
    "a header nested beyond use": (header(DEEP), RUN, "bad.safetensors: not a readable checkpoint"),
    "tensors that overlap": (
        tensors(12, a=("F32", [2], [0, 8]), b=("F32", [2], [4, 12])),
        RUN,
        "bad.safetensors: not a readable checkpoint",
    ),
    "a tensor beyond the file": (
        tensors(0, a=("F32", [10**12], [0, 4 * 10**12])),
        RUN,
        "bad.safetensors: not a readable checkpoint",
    ),
    "a kind of number that is none": (
        tensors(16, a=("F128", [1], [0, 16])),
        RUN,
        "bad.safetensors: not a readable checkpoint",
    ),
    "metadata of somebody else": (
        header('{"__metadata__":{"format":"pt"}}'),
        RUN,
        "bad.safetensors: format is 'pt'",
    ),
    "weights that are whole numbers": (starts_from(in_other_numbers), RUN, "expected floating-point numbers"),
    "a blueprint nested beyond use": (described(DEEP), RUN, "bad.safetensors: its blueprint cannot be read"),
    "a blueprint of ten million letters": (described('"' + "x" * 10**7), RUN, "its blueprint cannot be read"),
    "a blueprint larger than its weights": (
        described(json.dumps({"emb": {"dim": 10**9, "vocab": 10**9}, "blocks": [SMALL]})),
        RUN,
        "bad.safetensors: ",
    ),
    "weights that are a pipe": (
        starts_from(lambda good, bad: os.mkfifo(bad)),
        RUN,
        "bad.safetensors: not a readable checkpoint",
    ),
    # -------------------------------------------------------------------------------------------------- experiments
    "text that is a pipe": (
        lambda place: (pipe("p")(place), config("source: ", "source: @/p #")(place)),
        "validate @/tiny.yaml",
        "/p",
    ),
    "an experiment that is a folder": (nothing, "validate @/corpus", "corpus: is a folder, expected a file"),
    "an experiment that is a pipe": (pipe("p.yaml"), "validate @/p.yaml", "p.yaml"),
    "an experiment that is a pipe, explained": (pipe("p.yaml"), "explain @/p.yaml", "p.yaml"),
    "an experiment of bytes": (text("b.yaml", b"\x00\xff" * 1000), "diff @/b.yaml @/tiny.yaml", "b.yaml"),
    "an experiment with NUL in its name": (nothing, "validate @/a\0b.yaml", "a\\x00b.yaml"),
    "half a character in a name": (config("name: tiny", r'name: "\ud800"'), "validate @/tiny.yaml", "tiny.yaml:2:"),
    # -------------------------------------------------------------------------------------------------------- flags
    "a million workers": (nothing, f"{RUN} --workers 1000000", "--workers: got 1000000, expected at most"),
    "no workers": (nothing, f"{RUN} --workers 0", "--workers: got 0"),
    "time that is no number": (nothing, f"{RUN} --timeout nan", "--timeout: got nan"),
    "time that is negative": (nothing, f"{RUN} --timeout=-1", "--timeout: got -1"),
    "memory in words": (nothing, f"{RUN} --memory-limit lots", "--memory-limit: got 'lots'"),
    "memory that is negative": (nothing, f"{RUN} --memory-limit=-1GB", "--memory-limit: got '-1GB'"),
    "memory that is no number": (nothing, f"{RUN} --memory-limit nan", "--memory-limit: got 'nan'"),
    "no memory": (nothing, f"{RUN} --memory-limit 0", "--memory-limit: got '0'"),
    "a budget in words": (nothing, f"{RUN} --disk-budget some", "--disk-budget: got 'some'"),
    "an infinite budget": (nothing, f"{RUN} --disk-budget inf", "--disk-budget: got 'inf'"),
    "a share of a GPU in words": (
        nothing,
        f"{RUN} --executor ray --gpus-per-candidate some",
        "--gpus-per-candidate: got 'some', expected from 0 to 1, such as 0.25, or auto",
    ),
    "a share of a GPU that is no number": (
        nothing,
        f"{RUN} --executor ray --gpus-per-candidate nan",
        "--gpus-per-candidate: got nan",
    ),
    "a seed of 5,000 digits": (nothing, f"{RUN} --seed {'9' * 5000}", "--seed"),
    "a folder with NUL in its name": (nothing, "run @/tiny.yaml --out @/a\0b", "a\\x00b"),
    "five thousand edits": (nothing, f"{RUN} --mutation-steps 5000", "mutation_steps"),
    "a thousand million seeds": (nothing, "verify @/run --seeds 1000000000", "--seeds: got 1000000000"),
    "a thousand million walks": (nothing, "verify @/run --random 1000000000", "--random: got 1000000000"),
    "a million trainers": (nothing, "verify @/run --workers 1000000", "--workers: got 1000000"),
    "tokens beyond all time": (nothing, f"verify @/run --tokens {10**30}", "--tokens: got 1"),
    "negative tokens": (nothing, "verify @/run --tokens=-1", "--tokens: got -1"),
    "no finalists": (nothing, "verify @/run --finalists 0", "--finalists: got 0"),
    "10¹² resamples": (nothing, f"fidelity @/run --bootstrap {10**12}", "--bootstrap: got 1"),
    "a thousand million seeds of fidelity": (nothing, "fidelity @/run --seeds 1000000000", "--seeds: got"),
    "the best of none": (nothing, "fidelity @/run --top-k 0", "--top-k: got 0"),
    "long beyond all time": (nothing, f"fidelity @/run --long {10**30}", "--long: got 1"),
    "a program's question about a ledger of paths": (forged("asked", called("../x")), "ask @/run", "candidates.0.id"),
    "proposals that are a pipe": (pipe("p.json"), "tell @/run @/p.json", "p.json"),
    "proposals nested beyond use": (text("p.json", DEEP), "tell @/run @/p.json", "p.json"),
    "a training names code": (IN_YAML, "train @/tiny.yaml --steps 1 --output-dir @/new", "--allow-code"),
    "a text of a checkpoint that names code": (
        described(json.dumps({"emb": {"dim": 8, "vocab": 9}, "blocks": [CODE]})),
        "generate @/bad.safetensors --prompt a",
        "bad.safetensors: its blueprint cannot be read",
    ),
    "an export of a checkpoint nested beyond use": (described(DEEP), "export @/bad.safetensors --out @/new", "bad.saf"),
    "a merge of a checkpoint nested beyond use": (
        described(DEEP),
        "merge @/bad.safetensors @/bad.safetensors --out @/new.safetensors",
        "bad.safetensors",
    ),
    "a look at text that is a pipe": (
        lambda place: (pipe("pipe")(place), config("[{source: ", "[{source: @/pipe}, {source: ")(place)),
        "data @/tiny.yaml",
        "is a FIFO",
    ),
    "text that is a saved data set in name only": (
        lambda place: (
            (place / "saved").mkdir(),
            text("saved/state.json", DEEP)(place),
            text("saved/x.arrow", b"ARROW1\0\0 not")(place),
            config("[{source: ", "[{source: @/saved}, {source: ")(place),
        ),
        "data @/tiny.yaml",
        "x.arrow is not a readable Arrow file",
    ),
    "a first experiment over a file that is there": (nothing, "init @/tiny.yaml", "tiny.yaml: is there already"),
    "a first experiment in a place that is a link": (
        link("new.yaml"), "init @/new.yaml --force --from phi", "new.yaml: is a link"
    ),
    "a first experiment of another kind": (nothing, "init @/new.yaml --from smok", "did you mean 'smoke'?"),
    "an older file nested beyond use": (text("old.yaml", DEEP), "convert @/old.yaml --out @/new.yaml", "old.yaml"),
    "an older file of code": (
        text("old.yaml", "model: {blocks: [{extras: [{type: custom, name: !!python/name:os.system }]}]}"),
        "convert @/old.yaml --out @/new.yaml",
        "old.yaml",
    ),
    "an older file whose place is a link": (
        lambda place: (text("old.yaml", OLDER)(place), link("new.yaml")(place)),
        "convert @/old.yaml --out @/new.yaml --force",
        "new.yaml: is a link",
    ),
    "a model of no folder": (text("config.json", DEEP), "import @ --out @/new.yaml", "config.json"),
    "a schema of no file": (nothing, "schema ../x", "../x"),
    "figures of something": (nothing, "figures @/run", "/run"),
    "an unknown figure": (nothing, "verify @/run --metric \x1b[2J", "--metric: got"),
}  # fmt: skip


def test_every_command_has_a_case() -> None:
    registered = {name_of(command) for command in app_with().registered_commands}
    missing = registered - {args.split()[0] for _, args, _ in CASES.values()} - {"doctor"}  # which is tried below
    assert not missing, f"add a bad input of {', '.join(sorted(missing))} to CASES of tests/test_hostile_input.py"


@pytest.mark.parametrize("what", CASES)
def test_a_hostile_input_is_refused_in_one_line_and_nothing_is_changed(what: str, place: Path, cli: Cli) -> None:
    prepare, args, said = CASES[what]
    prepare(place)
    before = tree(place)
    code, out, err = cli(*(arg.replace("@", str(place)) for arg in args.split(" ")))
    assert code == 2, out + err
    assert err.startswith("morphogen: ")
    assert err.count("\n") == 1
    assert said in err
    assert len(err) < 2000
    assert not [character for character in err[:-1] if not character.isprintable()]
    assert out == ""
    assert tree(place) == before


#: What a look at a run finds wrong, changing nothing: what is done to the folder, what the finding says.
UNHEALTHY: dict[str, tuple[Prepare, str]] = {
    "code": (forged("asked", with_part(CODE)), "names code"),
    "a plug-in that is gone": (forged("asked", with_part(GONE)), "plug-in gone"),
    "a name that is a path": (forged("asked", called("../x")), "candidates.0.id"),
    "a link": (link("run/run.log"), "run/run.log: is a link"),
    "a pipe": (pipe("run/lineage.json"), "lineage.json"),
    "an experiment that is a pipe": (pipe("run/experiment.yaml"), "experiment.yaml"),
    "an environment nested beyond use": (text("run/environment.json", DEEP), "environment.json"),
    "checkpoints that are a link": (link("run/checkpoints", "outside"), "run/checkpoints: is a link"),
    "an endless event": (forged("report", lambda event: DEEP), "event 3 (report)"),
}


@pytest.mark.parametrize("what", UNHEALTHY)
def test_the_doctor_finds_what_is_hostile_and_leaves_it(what: str, place: Path, cli: Cli) -> None:
    prepare, said = UNHEALTHY[what]
    prepare(place)
    before = tree(place)
    code, out, err = cli("doctor", place / "run")
    assert code == 2
    assert said in out + err
    assert "Traceback" not in out + err
    assert tree(place) == before


@pytest.mark.parametrize("prepare", [forged("asked", with_part(CODE)), forged("asked", with_part(GONE))])
def test_what_only_looks_at_a_run_needs_no_code(prepare: Prepare, place: Path, cli: Cli) -> None:
    prepare(place)
    before = tree(place)
    assert cli("status", place / "run")[0] == 0
    assert cli("lineage", place / "run")[0] == 0
    IN_YAML(place)
    code, out, _ = cli("diff", place / "tiny.yaml", place / "run" / "experiment.yaml")
    assert (code, "antigravity:X" in out) == (0, True)
    assert {name: what for name, what in tree(place).items() if name != "tiny.yaml"} == {
        name: what for name, what in before.items() if name != "tiny.yaml"
    }


def test_pictures_of_a_lineage_that_claims_millions_of_generations_stay_small(place: Path, cli: Cli) -> None:
    changed(LINEAGE, lambda data: [node.update(generation=10**6 * i) for i, node in enumerate(data["nodes"])])(place)
    code, out, err = cli("lineage", place / "run", "--json", "--out", place / "a.svg")
    assert code == 0
    assert json.loads(out)["nodes"][1]["generation"] == 10**6
    assert err == f"wrote {place}/a.svg\n"
    assert ">1000000<" in (place / "a.svg").read_text()
    assert (place / "a.svg").stat().st_size < 200_000


@pytest.mark.parametrize(
    "new", ["seq_len: 32\n  batch_size: 1000000000", "seq_len: 32\n  batch_size: 4\n  # hidden: 4000000000"]
)
def test_what_this_machine_cannot_hold_is_counted_but_not_measured(new: str, place: Path, cli: Cli) -> None:
    config("seq_len: 32\n  batch_size: 4", new)(place)
    if "hidden" in new:
        config("hidden: 32", "hidden: 400000000")(place)
        config("emb: {dim: 16}", "emb: {dim: 1024}")(place)
    code, out, _ = cli("explain", place / "tiny.yaml", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["params"] > 0
    assert told["measured"] is None
    assert "bytes, and cpu has" in told["not_measured"]
