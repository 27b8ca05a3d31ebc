"""Runs whose candidates have layers of other models: recorded with their hashes, gone on with where all was moved."""

from pathlib import Path

import pytest

from foreign_models import llama
from morphogen.blueprint.schema import Blueprint
from morphogen.parts.foreign.foreign import Foreign
from morphogen.store.ledger import Asked, Ledger, Reported
from tiny import Cli, write_config

WEIGHTS = "{insert_foreign: 100, unfreeze_foreign: 20, change_foreign_router: 20}"


@pytest.mark.slow
def test_a_run_with_donors_goes_on_where_it_was_moved_with_them(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "home"
    llama(home / "donor")
    config = write_config(home)
    text = config.read_text().replace("survivors: rest, ", "")
    config.write_text(
        text.replace("evolution: {", "evolution: {donors: [./donor], mutation_weights: " + WEIGHTS + ", ")
    )
    code, _, said = cli("run", str(config), "--out", str(home / "run"))
    assert code == 0, said
    with Ledger.open(home / "run", readonly=True) as ledger:
        reports = [event.report for event in ledger.events() if isinstance(event, Reported)]
    donors = [donor for report in reports for donor in report.donors]
    assert donors
    assert {donor.model for donor in donors} == {str(home / "donor")}

    there = tmp_path / "there"
    home.rename(there)
    code, _, said = cli(
        "run", str(there / "run" / "experiment.yaml"), "--out", str(there / "run"), "--generations", "3", "--resume"
    )
    assert code == 0, said
    with Ledger.open(there / "run", readonly=True) as ledger:
        candidates = [
            candidate for event in ledger.events() if isinstance(event, Asked) for candidate in event.candidates
        ]
    assert max(candidate.generation for candidate in candidates) == 3
    extras = [
        extra
        for candidate in candidates
        for block in Blueprint.model_validate(candidate.blueprint).blocks
        for extra in block.extras
        if isinstance(extra, Foreign)
    ]
    assert {expert.model for extra in extras for expert in extra.experts} == {str(there / "donor")}
