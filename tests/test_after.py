"""What people do after a run, by the command line: one tiny run for all of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from morphogen.run import evolve, load
from tiny import Cli, write_config

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("after")
    config = write_config(folder, **{"hidden: 32": "hidden: 32, activation: gelu", "generations: 2": "generations: 1"})
    evolve(load(config), folder / "runs" / "mine")
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "place")
    return tmp_path / "place"


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


# --------------------------------------------------------------------------------------------------------- ablations


def test_ablations_from_both_starts_stand_beside_the_candidate_and_what_does_not_apply_is_said(
    place: Path, cli: Cli
) -> None:
    run = place / "runs" / "mine"
    options = ("--top-n", 1, "--steps", 1, "--seeds", 2, "--eval-batches", 1)
    named = ("--ablation", "norm_swap", "--ablation", "retro_off", "--ablation", "undo")
    code, out, err = cli("ablate", run / "frontier.json", *options, *named, "--wide")
    assert code == 0, err
    report = place / "runs" / "ablation_report.json"
    assert read(report) == read(run / "ablation.json")
    assert report.with_suffix(".png").read_bytes() == (run / "ablation.png").read_bytes()
    found = {(one["ablation"], one["start"]): one for one in read(report)["ablations"]}
    swapped = found["norm_swap", "inherited"]
    assert [change["path"] for change in swapped["changes"]] == ["norm"]
    assert len(swapped["values"]) == len(swapped["usual"]) == 2
    assert swapped["difference"] == pytest.approx(
        sum(a - b for a, b in zip(swapped["values"], swapped["usual"], strict=True)) / 2
    )
    assert swapped["low"] <= swapped["difference"] <= swapped["high"]
    assert swapped["usual"] != found["norm_swap", "scratch"]["usual"]
    assert "norm_swap" in out
    assert found["retro_off", None]["applied"] is False
    assert "retro_off does not apply: it has no retro memory" in err
    # once more, all of it was done before
    code, out, err = cli("ablate", run, *options, *named, "--json")
    assert code == 0
    assert "trainings were done before" in err
    assert json.loads(out) == read(report)


def test_without_weights_ablations_are_from_scratch_alone(place: Path, cli: Cli) -> None:
    run = place / "runs" / "mine"
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    code, _, err = cli("ablate", run, "--top-n", 1, "--steps", 1, "--seeds", 2, "--ablation", "norm_swap")
    assert code == 0
    assert "norm_swap, inherited, does not apply: the weights of the candidate are gone" in err
    assert [one["applied"] for one in read(run / "ablation.json")["ablations"]] == [False, True]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--ablation", "retro_of"), "did you mean 'retro_off'?"),
        (("--ablation", "undo:nothing"), "--ablation: got 'undo:nothing', expected one of undo"),
        (("--id", "roo"), "--id (of "),
        (("--seeds", "1"), "--seeds: got 1, expected at least 2"),
        (("--metric", "bp"), "did you mean 'bpb'?"),
        (("--steps", "0"), "--steps: got 0"),
        (("--out", "PLACE"), "--out: "),
    ],
)
def test_what_cannot_be_ablated_is_said_in_one_line(
    flags: tuple[str, ...], said: str, finished: Path, cli: Cli
) -> None:
    given = [flag.replace("PLACE", str(finished)) for flag in flags]
    code, _, err = cli("ablate", finished / "runs" / "mine", *given)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
