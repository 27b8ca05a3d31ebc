"""What people do after a run, by the command line: one tiny run for all of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.run import evolve, load
from tiny import Cli, write_config

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]


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


def test_another_runs_ablations_are_overwritten_only_where_they_are_named(place: Path, cli: Cli) -> None:
    run, report = place / "runs" / "mine", place / "runs" / "ablation_report.json"
    picture, options = report.with_suffix(".png"), ("--ablation", "retro_off", "--seeds", 2, "--steps", 1)
    told = {"schema_version": 1, "run": "theirs", "ablations": []}

    def refused() -> str:
        before = {path: path.read_bytes() for path in (report, picture) if path.exists()}
        code, _, err = cli("ablate", run, *options)
        assert (code, "--out" in err, err.count("\n")) == (2, True, 1), err
        assert before == {path: path.read_bytes() for path in before}
        return str(err)

    report.write_text(json.dumps(told))
    assert "is the report of another run, theirs;" in refused()
    name = read(run / "frontier.json")["run"]  # other runs of the experiment are called so too
    report.write_text(json.dumps({**told, "run": name, "folder": "theirs"}))
    assert "is the report of another run, theirs;" in refused()
    picture.write_bytes(b"\x89PNG\r\n\x1a\n morphogen")
    code, _, err = cli("ablate", run, *options, "--out", report)
    assert code == 0, err
    assert (read(report)["run"], read(report)["folder"]) == (name, "mine")
    assert read(report) == read(run / "ablation.json")
    code, _, err = cli("ablate", run, *options)
    assert code == 0, err
    report.unlink()
    assert "is there without the report" in refused()


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


# ------------------------------------------------------------------------------------------------------------- seeds


def newest(run: Path) -> dict[str, Any]:
    """The candidate of the frontier that has most behind it."""
    return max(read(run / "frontier.json")["candidates"], key=lambda one: one["tokens"]["lineage"])


def test_a_seed_begins_the_next_run_warm_and_its_lineage_and_tokens_go_on(place: Path, cli: Cli) -> None:
    run, one = place / "runs" / "mine", newest(place / "runs" / "mine")
    config, weights = place / "seeds" / "one.yaml", place / "seeds" / "one.safetensors"
    flags = ("--id", one["id"], "--out-config", config, "--checkpoint-dir", run / "checkpoints")
    code, out, err = cli("seed", run / "frontier.json", *flags, "--out-checkpoint", weights.with_suffix(".pt"))
    assert code == 0, err
    assert "weights are kept as safetensors only" in err
    assert str(weights) in out
    assert config.read_text().startswith(f"# Seed: candidate {one['id']} of the run tiny-0.\n")
    moved = place / "moved"
    config.parent.rename(moved)  # the two belong together, wherever they are
    seeded = load(moved / "one.yaml")
    assert seeded.model.to_json() == one["blueprint"]
    assert seeded.train.init_checkpoint == str(moved / "one.safetensors")
    following = evolve(seeded, place / "runs" / "next", generations=0)
    root = following.frontier.candidates[0]
    assert root.tokens.lineage == one["tokens"]["lineage"] + root.tokens.own
    assert root.metrics["bpb_inherited"] == pytest.approx(one["metrics"]["bpb"], abs=0.2)
    assert root.inheritance is not None
    assert root.inheritance.fresh == 0
    before = read(place / "runs" / "next" / "lineage.json")["continues"]
    assert (before["id"], before["tokens"]) == (one["id"], one["tokens"]["lineage"])
    assert before["forebears"][0]["id"].startswith("root-0")
    code, out, _ = cli("lineage", place / "runs" / "next")
    assert f"goes on from {one['id']} of the run tiny-0" in out
    assert cli("doctor", place / "runs" / "next")[0] == 0
    # a seed of the seed remembers both
    again = ("--id", root.id, "--out-config", place / "two.yaml", "--out-checkpoint", place / "two.safetensors")
    assert cli("seed", place / "runs" / "next", *again)[0] == 0
    from morphogen.inherit.checkpoint import continued

    found = continued(str(place / "two.safetensors"))
    assert found is not None
    assert [it.id for it in found.forebears] == [*(it["id"] for it in before["forebears"]), root.id]


def test_a_seed_without_weights_begins_fresh_and_overwrites_only_seeds(place: Path, cli: Cli) -> None:
    run = place / "runs" / "mine"
    flags = ("--id", newest(run)["id"], "--out-config")
    for _ in range(2):
        code, _, err = cli("seed", run, *flags, place / "cold.yaml")
        assert code == 0
    assert "begins with fresh weights" in err
    assert load(place / "cold.yaml").train.init_checkpoint is None
    before = (place / "tiny.yaml").read_bytes()
    code, _, err = cli("seed", run, *flags, place / "tiny.yaml")
    assert (code, "is there already, and is no seed; --force overwrites it" in err) == (2, True)
    assert (place / "tiny.yaml").read_bytes() == before
    code, _, err = cli("seed", run, *flags, place / "a.yaml", "--out-checkpoint", place / "tiny.safetensors")
    assert code == 0
    assert cli("seed", run, *flags, place / "a.yaml", "--out-checkpoint", place / "tiny.safetensors")[0] == 0  # a seed
    weights = next((run / "checkpoints").glob("root-*.safetensors"))
    shutil.copy(weights, place / "precious.safetensors")
    for there, said in ((weights, "lies among a run's own files"), (place / "precious.safetensors", "and is no seed")):
        before = there.read_bytes()
        code, _, err = cli("seed", run, *flags, place / "a.yaml", "--out-checkpoint", there)
        assert (code, said in err) == (2, True)
        assert there.read_bytes() == before


def test_a_finetune_goes_on_from_the_weights_and_is_done_once(place: Path, cli: Cli) -> None:
    run, one = place / "runs" / "mine", newest(place / "runs" / "mine")
    code, _, err = cli("finetune", run, "--id", one["id"], "--steps", 2)
    assert code == 0, err
    (told,) = read(run / "finetune.json")["candidates"]
    assert told["lineage_tokens"] == one["tokens"]["lineage"] + 2 * 128
    assert told["before"] == one["metrics"]["bpb"]
    assert told["after"] < told["before"] + 0.5
    code, out, err = cli("finetune", run, "--id", one["id"], "--steps", 2, "--json")
    assert "done before" in err
    assert json.loads(out)["candidates"] == [told]
    # what is done needs no weights; what is to be trained further does
    whose = place / "runs" / "mine" / "checkpoints" / f"{one['id']}.safetensors"
    whose.rename(place / "away")
    code, out, err = cli("finetune", run, "--id", one["id"], "--steps", 2, "--json")
    assert (code, json.loads(out)["candidates"]) == (0, [told]), err
    code, _, err = cli("finetune", run, "--id", one["id"], "--steps", 3)
    assert (code, f"the weights of candidate {one['id']} are gone" in err) == (2, True)
    (place / "away").rename(whose)
    # another run's candidate of the same name is another training
    others = place / "other" / whose.name
    others.parent.mkdir()
    state, blueprint, metadata = load_checkpoint(whose)
    save_checkpoint(others, {name: x + 1 for name, x in state.items()}, blueprint, metadata)
    others.replace(whose)
    code, _, err = cli("finetune", run, "--id", one["id"], "--steps", 2)
    assert (code, "holds the training of other weights" in err) == (2, True)
    code, _, err = cli("finetune", run, "--id", "nobody", "--steps", 2)
    assert (code, "--id (of " in err) == (2, True)


def test_an_archive_holds_what_is_needed_to_go_on_and_frees_the_rest(place: Path, cli: Cli) -> None:
    run, out = place / "runs" / "mine", place / "kept"
    ids = [one["id"] for one in read(run / "frontier.json")["candidates"]]
    code, _, err = cli("archive", run, "--out", out, "--checkpoints", "bf16", "--delete-checkpoints")
    assert code == 0, err
    assert {path.name for path in out.iterdir()} == {
        "frontier.json",
        "lineage.json",
        "checkpoints",
        *(f"{id}.yaml" for id in ids),
    }
    assert not list((run / "checkpoints").glob("*.safetensors"))
    from morphogen.winners import Winners

    winners = Winners.of(out)
    assert [winner.id for winner in winners.candidates] == ids
    following = evolve(load(out / f"{ids[0]}.yaml"), place / "runs" / "again", generations=0)
    kept = winners[ids[0]]
    assert following.frontier.candidates[0].metrics["bpb_inherited"] == pytest.approx(kept.metrics["bpb"], abs=0.2)
    code, _, err = cli("archive", run, "--out", place / "corpus")
    assert (code, "holds something else than an archive" in err) == (2, True)
    code, _, err = cli("archive", run, "--out", place)
    assert code == 2
    assert cli("archive", run, "--out", out)[0] == 0  # once more, without weights
    assert not list((out / "checkpoints").iterdir())
    shutil.copytree(run, place / "runs" / "another")
    before = (place / "runs" / "another" / "frontier.json").read_bytes()
    code, _, err = cli("archive", run, "--out", place / "runs" / "another")
    assert (code, "holds something else than an archive" in err) == (2, True)
    assert (place / "runs" / "another" / "frontier.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------- motifs and scaling


def test_motifs_count_every_architecture_of_a_run_once(place: Path, cli: Cli) -> None:
    run, out = place / "runs" / "mine", place / "motifs.json"
    code, _, err = cli("motifs", run / "frontier.json", "--least", 1, "--out", out)
    assert code == 0, err
    found = read(out)
    counts = {(one["of_frontier"], one["of_others"]) for one in found["motifs"]}
    assert len(counts) == 1
    assert sum(counts.pop()) == len(read(run / "lineage.json")["nodes"])
    code, _, err = cli("motifs", run, run / "frontier.json")
    assert (code, "names a run once more" in err) == (2, True)


def test_a_scaling_fit_stands_beside_the_frontier_with_what_to_beware_of(place: Path, cli: Cli) -> None:
    run = place / "runs" / "mine"
    code, out, err = cli("scaling", run, "--all", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told == read(run / "scaling.json")
    assert (run / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    assert [(fit["y"], fit["x"]) for fit in told["fits"]] == [
        ("bpb", "params"),
        ("bpb", "tokens"),
        ("bpb", "FLOPs"),
        ("throughput", "width x heads"),
    ]
    assert told["candidates"] == len(read(run / "lineage.json")["nodes"])
    assert "times beyond the data" in err
    for flags, said in (
        ((run / "frontier.json",), "names a frontier once more"),
        (("--metric", "bp"), "did you mean 'bpb'?"),
        (("--target-params", "-1"), "--target-params: got -1, expected a positive number"),
        (("--out", "a.svg"), "expected a name that ends in .png"),
    ):
        code, _, err = cli("scaling", run, *flags)
        assert (code, said in err) == (2, True)
