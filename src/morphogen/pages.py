"""A run as its page shows it, from its engine: while it goes on, and from its folder at any time. No torch here."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from morphogen.analysis.records import Ablations, Fidelity, Verification
from morphogen.analysis.repeated import against_root
from morphogen.candidate import ANNEALED
from morphogen.errors import InputError, RunError
from morphogen.report.shown import RunShown
from morphogen.report.wording import number
from morphogen.runfolder import check_files
from morphogen.search.engine import Engine
from morphogen.store.files import parsed_json
from morphogen.store.holding import holder_of
from morphogen.store.ledger import FINISHED, LOCK, Ledger, Start, last_stop
from morphogen.store.ordinary import read_ordinary
from morphogen.store.places import ENVIRONMENT

#: What is measured of a run afterwards: what it is called -> which file in the run's folder.
EVIDENCE: Mapping[str, tuple[type[Ablations] | type[Verification] | type[Fidelity], str]] = {
    "Ablations": (Ablations, "ablation.json"),
    "Verification": (Verification, "verify.json"),
    "Fidelity": (Fidelity, "fidelity.json"),
}


#: A page that is written anew while a run goes on is so at most this often, and takes at most this share of the time.
SECONDS, SHARE = 20.0, 0.02


class Pace:
    """How often a page is written: `with` it around every writing."""

    def __init__(self) -> None:
        self.begun = self.next = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time again."""
        return time.monotonic() >= self.next

    def __enter__(self) -> None:
        self.begun = time.monotonic()

    def __exit__(self, *raised: object) -> None:
        now = time.monotonic()
        self.next = now + max(SECONDS, (now - self.begun) / SHARE)


def shown(
    engine: Engine,
    run: str,
    environment: Mapping[str, Any],
    devices: str = "",
    evidence: Mapping[str, Sequence[Mapping[str, Any]]] = MappingProxyType({}),
    ongoing: bool = False,
) -> RunShown:
    """What the page of a run tells.

    Args:
        engine: As it stands.
        run: The run's name.
        environment: As in its `environment.json`.
        devices: What it was trained on, where that is more than the environment's device.
        evidence: What was measured of it afterwards, as tables by what they are called.
        ongoing: Whether the page will be written again.
    """
    closed, evolution = engine.generations, engine.evolution
    facts = {
        "seed": str(engine.seed),
        "device": devices or str(environment.get("device", "")),
        "morphogen": environment.get("commit") or str(environment.get("versions", {}).get("morphogen")),
        **_measured_again(engine),
    }
    if closed and (judged := closed[-1].screening):
        facts["screening"] = judged.in_words
    return RunShown(
        run=run,
        candidates=engine.candidates,
        reports=engine.reports,
        frontier=closed[-1].frontier if closed else (),
        objectives=evolution.objectives,
        hypervolumes=[generation.hypervolume for generation in closed],
        reference=closed[-1].reference if closed else {},
        survivors=[generation.survivors for generation in closed],
        facts=facts,
        against_root=against_root(engine),
        unmet=engine.unmet,
        controls=[
            one.report
            for one in engine.again.values()
            if not one.candidate.edits and not _of_finalist(engine, one.report.id)
        ],
        environment=environment,
        composites={name: made.model_dump(mode="json") for name, made in evolution.composite_metrics.items()},
        evidence=evidence,
        ongoing=ongoing,
    )


def _of_finalist(engine: Engine, id: str) -> bool:
    """Whether a training beside the search is a repeat of a candidate, or one annealed."""
    return id.removesuffix(ANNEALED).rpartition("~")[0] in engine.candidates or id.endswith(ANNEALED)


def _measured_again(engine: Engine) -> dict[str, str]:
    """What the trainings beside the search have taken."""
    reports = [engine.again[id].report for id in sorted(engine.again) if not id.endswith(ANNEALED)]
    if not reports:
        return {}
    tokens, flops = sum(report.tokens_spent for report in reports), sum(report.flops for report in reports)
    told = f"{len(reports)} trainings, {number(tokens)} tokens, {number(flops)} FLOPs"
    return {"to compare finalists with the root": told}


def read(folder: Path) -> RunShown:
    """What the page of the run in `folder` tells; it may be running meanwhile.

    Raises:
        RunError: There is no run, or its ledger cannot be used.
        InputError: What it was begun with cannot be understood.
    """
    with Ledger.open(folder, readonly=True) as ledger:
        events = list(ledger.events())
    if not events or not isinstance(start := events[0], Start):
        raise RunError(f"{folder}: nothing has begun in this run, so that there is nothing to report")
    check_files(folder)
    try:
        engine = Engine.replay(events, run_dir=str(folder), device="cpu")
    except ValidationError as error:
        what = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in what["loc"])
        raise InputError(f"{folder}: the recorded experiment cannot be read: {place}: {what['msg']}") from None
    ongoing = holder_of(folder, LOCK) is not None and last_stop(events) != FINISHED
    return shown(engine, start.run, _environment(folder), evidence=_evidence(folder), ongoing=ongoing)


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    try:
        told = parsed_json(read_ordinary(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    versions = told.get("versions") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(versions, dict):
        raise InputError(f"{path}: cannot be read: versions are missing")
    return told


def _evidence(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured of this run afterwards. InputError for what cannot be read."""
    there = {title: (kind, folder / name) for title, (kind, name) in EVIDENCE.items() if (folder / name).exists()}
    return {title: kind.read(path).rows() for title, (kind, path) in there.items()}
