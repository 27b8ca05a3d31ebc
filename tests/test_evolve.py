"""The loop from end to end on real (if tiny) training: what it leaves behind, resuming, kills, repeatability."""

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import morphogen as mg
from kills import killed
from morphogen.analysis.recorded import Recorded
from morphogen.candidate import MOMENTS_SUFFIX, Job, Report, Status
from morphogen.cli.console import Lines
from morphogen.cli.doctor import examine
from morphogen.cli.status import standing
from morphogen.data.prepare import PreparedData
from morphogen.errors import InputError, RunError
from morphogen.execution.base import Progress
from morphogen.execution.local import InProcess
from morphogen.experiment import Experiment
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.keeping import Keep
from morphogen.notices import Closed, Ended, Measured, Notice, Training
from morphogen.run import evolve, load, settle
from morphogen.store.ledger import Ledger, Stop
from morphogen.training.trace import Progress as StepProgress
from morphogen.training.trial import run_surrogate
from processes import Command, forked
from tiny import events, untimed, write_config

pytestmark = pytest.mark.trained_before

FILES = {
    "checkpoints",
    "environment.json",
    "events.csv",
    "experiment.yaml",
    "frontier.json",
    "ledger.lock",
    "ledger.sqlite",
    "lineage.json",
    "lineage.svg",
    "report.html",
    "run.log",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("evolve")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORPHOGEN_CACHE", str(folder / "cache"))
        yield write_config(folder, **{"survivors: rest": "survivors: train"})


@pytest.fixture(scope="module")
def experiment(config: Path) -> Experiment:
    return load(config)


@pytest.fixture(scope="module")
def whole(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    evolve(experiment, folder)
    return folder


def same_run(a: Path, b: Path) -> None:
    assert events(a) == events(b)
    for name in ("lineage.json", "frontier.json"):
        assert untimed(a / name) == untimed(b / name)


def test_inherit_is_a_function_and_the_package_it_stands_in() -> None:
    def look() -> int:
        for name in [name for name in sys.modules if name.split(".")[0] == "morphogen"]:
            del sys.modules[name]  # imported anew, in this order
        import morphogen as mg

        before = (mg.evolve, mg.inherit)
        import morphogen.inherit as inheriting
        import morphogen.run as run

        assert run.evolve is mg.evolve
        assert inheriting.plan
        for call in (*before, mg.inherit, inheriting):
            with pytest.raises(TypeError, match="nonsense"):
                call(nonsense=0)
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(forked(look), 0)[1]) == 0


@pytest.mark.anew
def test_a_run_leaves_every_file_and_trains_every_candidate(whole: Path, experiment: Experiment) -> None:
    assert {path.name for path in whole.iterdir()} == FILES
    lineage = mg.evolve(experiment, whole, resume=True).lineage
    assert [node.generation for node in lineage.nodes] == [0] + [1] * 4 + [2] * 5
    assert {node.status for node in lineage.nodes} == {Status.TRAINED}
    assert all(node.tokens.own == 384 for node in lineage.nodes)
    told = json.loads((whole / "environment.json").read_bytes())
    assert told["seed"] == 0
    assert told["data"]["corpora"]["shards"][0]["digest"]
    assert "finished with 10 candidates" in (whole / "run.log").read_text()
    assert "text of " in (whole / "run.log").read_text()
    assert (whole / "events.csv").read_text().count("\n") == 11
    with Ledger.open(whole, readonly=True) as ledger:
        assert [event for event in ledger.events() if isinstance(event, Stop)] == [Stop(reason="finished")]


def test_the_resolved_experiment_is_the_experiment(whole: Path, experiment: Experiment) -> None:
    assert experiment.train.bf16 == "auto"
    assert load(whole / "experiment.yaml") == experiment.in_precision(False)  # which is settled once, and recorded
    assert experiment.model.emb.vocab == 257


def test_the_surface_of_the_package(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mg.build(experiment.model, seed=0)
    assert model(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 257)
    assert {"name", "summary", "preserves", "applies"} <= mg.operators(experiment.model)[0].keys()
    child, edit = mg.mutate(experiment.model, "widen_ffn", seed=1)
    assert edit.operator == "widen_ffn"
    state, report = mg.inherit(child, [(experiment.model, model.state_dict())])
    assert report.exact
    assert report.fresh > 0
    assert state.keys() == mg.build(child, seed=0).state_dict().keys()
    monkeypatch.chdir(tmp_path)
    run = mg.evolve(experiment, out="demo", generations=1, device=torch.device("cpu"))
    frontier = run.frontier
    monkeypatch.chdir("/")  # what was found is found from anywhere
    assert {entry.id for entry in run.frontier.candidates} == set(run.lineage.frontier)
    assert [winner.id for winner in frontier] == [winner.id for winner in frontier.candidates]
    assert len(frontier) == len(frontier.candidates)
    assert frontier.candidates[0].id in frontier
    assert frontier.candidates[0] in frontier
    assert "nobody" not in frontier
    for winner in frontier:
        mg.build(winner.blueprint).load_state_dict(winner.weights())
    more = run.resume(generations=2)
    assert more.lineage.nodes[: len(run.lineage.nodes)] != ()
    assert max(node.generation for node in more.lineage.nodes) == 2


def test_what_a_notebook_has_set_in_torch_does_not_get_into_a_run(experiment: Experiment, tmp_path: Path) -> None:
    mg.evolve(experiment, tmp_path / "plain", generations=0)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            mg.evolve(experiment, tmp_path / "around", generations=0)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    same_run(tmp_path / "plain", tmp_path / "around")


def test_functions_stay_functions_although_modules_share_their_names() -> None:
    import morphogen.inherit
    import morphogen.run  # noqa: F401

    assert callable(mg.evolve)
    assert callable(mg.inherit)
    with pytest.raises(AttributeError, match="no attribute 'evlove'"):
        mg.evlove  # noqa: B018


def test_observers_hear_of_everything_in_order(experiment: Experiment, tmp_path: Path) -> None:
    heard: list[Notice] = []
    evolve(experiment, tmp_path / "run", generations=1, observer=heard.append)
    measured = [notice for notice in heard if isinstance(notice, Measured)]
    assert [(notice.position, notice.total) for notice in measured] == [(1, 1), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert sum(isinstance(notice, Training) for notice in heard) == 5 * 3
    assert [notice.generation.generation for notice in heard if isinstance(notice, Closed)] == [0, 1]
    assert isinstance(heard[-1], Ended)


def test_more_generations_may_be_added_and_equal_those_of_a_longer_run(
    whole: Path, experiment: Experiment, tmp_path: Path
) -> None:
    evolve(experiment, tmp_path / "run", generations=1)
    evolve(experiment, tmp_path / "run", resume=True)
    assert events(tmp_path / "run")[1:] == events(whole)[1:]


def test_a_candidate_that_raises_is_recorded_and_costs_nothing_else(experiment: Experiment, tmp_path: Path) -> None:
    def broken(job: Job, progress: StepProgress | None, prepared: PreparedData | None) -> Report:
        if job.candidate.index == 2:
            raise ZeroDivisionError("on purpose")
        return run_surrogate(job, progress, prepared)

    run = evolve(experiment, tmp_path / "run", executor=InProcess(settle(experiment)[1], broken))
    (failed,) = [node for node in run.lineage.nodes if node.status is Status.FAILED]
    assert failed.index == 2
    assert failed.reason.startswith("ZeroDivisionError: on purpose (")
    assert len(run.lineage.nodes) == 10


def test_checkpoints_are_kept_where_and_as_long_as_asked(experiment: Experiment, tmp_path: Path) -> None:
    keep = Keep(
        checkpoint_dir=tmp_path / "weights",
        lineage_out=tmp_path / "copy.json",
        frontier_out=tmp_path / "front.json",
        cleanup=True,
        prune=True,
    )
    seen: list[int] = []

    def count(notice: Notice) -> None:
        if isinstance(notice, Measured):
            seen.append(len(list((tmp_path / "weights").glob("*.safetensors"))))

    # by one objective there is one on the frontier, so that something is left to drop
    alone = experiment.evolution.model_copy(update={"objectives": {"bpb": "min"}})
    run = evolve(experiment.model_copy(update={"evolution": alone}), tmp_path / "run", keep=keep, observer=count)
    entries = run.frontier.candidates
    files = {path.name for path in (tmp_path / "weights").glob("*.safetensors")}
    assert files == {f"{entry.id}{ending}" for entry in entries for ending in (".safetensors", MOMENTS_SUFFIX)}
    assert all((tmp_path / "run" / (entry.checkpoint or "")).is_file() for entry in entries)
    assert max(seen) < 2 * 10  # of each its weights and its moments
    for copy, name in (("copy.json", "lineage.json"), ("front.json", "frontier.json")):
        assert (tmp_path / copy).read_bytes() == (tmp_path / "run" / name).read_bytes()
    with pytest.raises(RunError, match="keeps its checkpoints in"):
        evolve(experiment, tmp_path / "run", resume=True, keep=Keep(checkpoint_dir=tmp_path / "other"))


def test_two_runs_do_not_share_a_folder_for_checkpoints(experiment: Experiment, tmp_path: Path) -> None:
    """The same experiment with another seed gives its root the same name."""
    keep = Keep(checkpoint_dir=tmp_path / "weights")
    evolve(experiment, tmp_path / "one", generations=0, keep=keep)
    root, _ = sorted((tmp_path / "weights").glob("*.safetensors"), key=lambda path: path.name.endswith(MOMENTS_SUFFIX))
    before = root.read_bytes()
    with pytest.raises(RunError, match=r"weights: holds the checkpoints of .*one; choose another --checkpoint-dir"):
        evolve(experiment, tmp_path / "two", generations=0, seed=5, keep=keep)
    shutil.copytree(tmp_path / "weights", tmp_path / "copied", ignore=shutil.ignore_patterns(".run"))
    with pytest.raises(RunError, match="holds checkpoints of something else"):
        evolve(experiment, tmp_path / "three", seed=5, keep=Keep(checkpoint_dir=tmp_path / "copied"))
    assert root.read_bytes() == before
    evolve(experiment, tmp_path / "one", generations=1, resume=True, keep=keep)


@pytest.mark.parametrize("copy", [".", "", "folder", "nowhere/lineage.json"])
def test_a_copy_that_cannot_be_written_is_told_before_anything_begins(
    copy: str, experiment: Experiment, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    place = Path(copy) if copy in (".", "") else tmp_path / copy
    with pytest.raises(InputError, match="to write to"):
        evolve(experiment, tmp_path / "run", keep=Keep(lineage_out=place))
    assert not (tmp_path / "run").exists()


def test_an_interrupt_leaves_a_run_that_goes_on(whole: Path, experiment: Experiment, tmp_path: Path) -> None:
    steps = iter(range(8))

    def stop(notice: Notice) -> None:
        if isinstance(notice, Training) and next(steps, None) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, tmp_path / "run", observer=stop)
    with Ledger.open(tmp_path / "run", readonly=True) as ledger:
        assert list(ledger.events())[-1] == Stop(reason="interrupted")
    evolve(experiment, tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"lr": 0.5}}, r"train.lr is 0.01 there and 0.5 here"),
        ({"evolution": {"population": 4}}, r"evolution.population is 3 there and 4 here"),
        ({"model": {"norm": "layernorm"}}, r"model.norm is rmsnorm there and layernorm here"),
    ],
)
def test_another_experiment_is_not_mixed_in(
    whole: Path, experiment: Experiment, change: dict[str, dict[str, object]], said: str
) -> None:
    before = events(whole)
    plain = experiment.model_dump(mode="json")
    other = Experiment.model_validate({**plain, **{name: {**plain[name], **new} for name, new in change.items()}})
    with pytest.raises(RunError, match=said):
        evolve(other, whole, resume=True)
    with pytest.raises(RunError, match="the seed is 0 there and 1 here"):
        evolve(experiment, whole, resume=True, seed=1)
    assert events(whole) == before


def test_other_text_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    experiment = load(write_config(tmp_path))
    run = evolve(experiment, tmp_path / "run", generations=0)
    (tmp_path / "corpus" / "new.txt").write_text("a document that was not there when the run began\n")
    with pytest.raises(RunError, match=r"has changed: 40 documents of .* there and 41 documents of .* here.*Put back"):
        run.resume(generations=1)


def test_what_nothing_measures_is_refused_before_training(experiment: Experiment, tmp_path: Path) -> None:
    for change in (
        {"objectives": {"long_recall": "max"}},
        {"weights": {"recall_nll": 1.0}},
        {"weight_inheritance": "init"},
    ):
        evolution = experiment.evolution.model_copy(update=change)
        with pytest.raises(InputError, match=r"long_recall|recall_nll|init_checkpoint"):
            evolve(experiment.model_copy(update={"evolution": evolution}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def no_leftovers(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} - {"ledger.sqlite-wal", "ledger.sqlite-shm"} == FILES
    assert all(path.name.endswith(".safetensors") for path in (folder / "checkpoints").iterdir())


#: Where runs are killed, one after the other.
AWKWARD = ["append:2", "step:2", "rename:7", "tell:3"]
AWKWARD_TIDYING = ["step:2", "export:1", "unlink:1", "apply:4", "unlink:2"]
MORE = ["append:1", "append:2", "step:2", "rename:7", "export:1", "tell:3", "checkpoint:2"]
MORE_TIDYING = [
    "step:2",
    "rename:3",
    "export:1",
    "unlink:1",
    "apply:4",
    "unlink:2",
    "rename:7",
    "export:1",
    "unlink:1",
    "apply:9",
]


@pytest.mark.parametrize(
    ("moments", "tidying"),
    [(AWKWARD, AWKWARD_TIDYING), pytest.param(MORE, MORE_TIDYING, marks=pytest.mark.slow)],
    ids=["some", "more"],
)
@pytest.mark.anew
def test_runs_killed_at_awkward_places_go_on_as_if_they_had_not_been(
    moments: list[str], tidying: list[str], experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    """Also in clean-up, pruning, export and resuming, which leave what an undisturbed run leaves, and with checkpoints
    in the middle of candidates."""
    plain, tidy = tmp_path / "plain", tmp_path / "tidy"
    assert killed(experiment, plain, moments) == [-9] * len(moments) + [0]
    assert killed(experiment, tidy, tidying, tidy=True, checkpoint_tokens=1) == [-9] * len(tidying) + [0]
    evolve(experiment, tmp_path / "undisturbed", keep=Keep(cleanup=True, prune=True))
    for run in (plain, tidy):
        no_leftovers(run)
        same_run(run, whole)
    left, wanted = ({p.name for p in (run / "checkpoints").iterdir()} for run in (tidy, tmp_path / "undisturbed"))
    assert left == wanted


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_goes_on_as_if_it_had_not_been(
    experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    rng = random.Random(0)
    shares = [f"{rng.uniform(0.0, 0.2):.3f}" for _ in range(10)]
    *codes, last = killed(experiment, tmp_path / "run", shares)
    assert codes.count(-9) >= 5
    assert last == 0
    no_leftovers(tmp_path / "run")
    same_run(tmp_path / "run", whole)


def test_sigterm_ends_the_command_with_130_and_it_can_be_resumed(config: Path, whole: Path, tmp_path: Path) -> None:
    with Command("run", config, "--out", tmp_path / "run", "--json") as process:
        for line in process.stdout:
            if json.loads(line)["event"] == "closed":
                break
        os.kill(process.pid, signal.SIGTERM)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.count("\n") == 1
    assert "--resume" in said
    evolve(load(config), tmp_path / "run", resume=True)
    same_run(tmp_path / "run", whole)


def test_templates_are_kept_with_the_run_and_a_changed_file_is_noticed(experiment: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "templates.yaml"
    file.write_text("templates: [{name: both, actions: [{operator: widen_ffn}, {operator: insert_layer_scale}]}]\n")
    settings = {
        "generations": 1,
        "crossover_prob": 0.0,
        "mutation_steps": 1,
        "templates": str(file),
        "template_mutation_prob": 0.0,
        "mutation_weights": {"template_mutation": 1e6},
    }
    changed = type(experiment.evolution).model_validate({**dict(experiment.evolution), **settings})
    templated = experiment.model_copy(update={"evolution": changed})
    run = evolve(templated, tmp_path / "run")
    used = [edit.template for edge in run.lineage.edges for edit in edge.edits if edit.template]
    assert {template["name"] for template in used} == {"both"}
    steps = [step.operator for edge in run.lineage.edges for edit in edge.edits for step in edit.steps]
    assert {"widen_ffn", "insert_layer_scale"} <= set(steps)
    assert all(node.inheritance.exact for node in run.lineage.nodes[1:] if node.inheritance)
    assert "name: both" in (tmp_path / "run" / "experiment.yaml").read_text()
    resolved = load(tmp_path / "run" / "experiment.yaml")
    assert resolved.evolution.templates == run.experiment.evolution.templates
    file.write_text(file.read_text().replace("both", "other"))
    with pytest.raises(RunError, match=r"evolution.templates\[0\].name is both there and other here"):
        evolve(templated, tmp_path / "run", resume=True)
    file.unlink()
    assert evolve(run.experiment, tmp_path / "run", generations=2, resume=True).lineage.nodes[-1].generation == 2


def test_bad_templates_are_told_before_anything_is_done(experiment: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "templates.yaml"
    file.write_text("templates: [{name: a, actions: [{operator: widen_fnn}]}]\n")
    evolution = experiment.evolution.model_copy(update={"templates": str(file)})
    with pytest.raises(InputError, match=r"templates.yaml:1:34 templates\[0\].actions\[0\].operator: got 'widen_fnn'"):
        evolve(experiment.model_copy(update={"evolution": evolution}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_device_than_the_run_began_on_is_told_and_kept(
    experiment: Experiment, whole: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    evolve(experiment, moved, generations=3, resume=True)
    assert "was begun on" not in (moved / "run.log").read_text()
    environment = (moved / "environment.json").read_text()
    (moved / "environment.json").write_text(environment.replace('"device": "cpu"', '"device": "cuda:0"'))
    said: list[str] = []
    evolve(experiment, moved, generations=4, resume=True, observer=Lines(said.append))
    (line,) = [line for line in (moved / "run.log").read_text().splitlines() if "was begun on" in line]
    assert line.endswith(said[0])
    assert said[0].endswith("candidates, on cpu, but it was begun on cuda:0: numbers may differ")
    assert "cuda:0, later cpu" in (moved / "report.html").read_text()


def test_successive_halving_and_promotion_run_for_real_and_resume_to_the_same_end(
    experiment: Experiment, tmp_path: Path
) -> None:
    changes = {"rungs": "asha", "eta": 2, "min_tokens": 128, "max_tokens": 512, "population": 4, "generations": 1}
    changes |= {"promotion_prob": 1.0}
    evolution = type(experiment.evolution).model_validate({**dict(experiment.evolution), **changes})
    halving = experiment.model_copy(update={"evolution": evolution})
    whole = evolve(halving, tmp_path / "whole")
    root, *others = whole.lineage.nodes
    assert sorted(node.tokens.own for node in others) == [128, 128, 128, 256, 768]
    assert sorted(node.rung for node in others) == [1, 1, 1, 2, 4]
    assert (root.tokens.own, root.metrics["budget_share"]) == (768, 1.5)
    assert [node.status for node in others].count(Status.GATED) == 4
    recorded = Recorded.read(tmp_path / "whole")
    assert {id: report.status for id, report in recorded.reports.items()} == {
        node.id: node.status for node in whole.lineage.nodes
    }
    assert standing(tmp_path / "whole")["candidates"] == {"gated": 4, "trained": 2, "pending": 0}
    needed = {entry.checkpoint for entry in whole.frontier.candidates}
    checkpoints = tmp_path / "whole" / "checkpoints"
    assert len(list(checkpoints.iterdir())) > len(others) + 1  # of earlier rounds, too
    size = sum((tmp_path / "whole" / str(name)).stat().st_size for name in needed)
    evolve(halving, tmp_path / "small", keep=Keep(disk_budget=3 * size))
    left = list((tmp_path / "small" / "checkpoints").iterdir())
    assert sum(path.stat().st_size for path in left) <= 3 * size
    assert needed <= {f"checkpoints/{path.name}" for path in left}

    class Stops(InProcess):
        def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
            for done, report in enumerate(super().map(jobs, progress)):
                if done == 1 and report.rung == 2:  # trained and saved, but not on record
                    raise KeyboardInterrupt
                yield report

    with pytest.raises(KeyboardInterrupt):
        evolve(halving, tmp_path / "parts", executor=Stops())
    evolve(halving, tmp_path / "parts", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_finalists_are_annealed_at_the_end_beside_their_own_figures(experiment: Experiment, tmp_path: Path) -> None:
    evolution = experiment.evolution.model_copy(update={"generations": 1, "anneal_tokens": 256})
    plain = evolve(experiment, tmp_path / "run", generations=1)
    before = {entry.id: entry for entry in plain.frontier.candidates}
    annealing = experiment.model_copy(update={"evolution": evolution})
    run = evolve(annealing, tmp_path / "run", resume=True, keep=Keep(prune=True))
    for entry in run.frontier.candidates:
        assert entry.metrics["bpb_annealed"] != entry.metrics["bpb"] == before[entry.id].metrics["bpb"]
        assert entry.flops > before[entry.id].flops
        (file,) = (run.folder / "checkpoints").glob(f"{entry.id}~annealed-rung?.safetensors")
        state, _, _ = load_checkpoint(file)
        assert state.keys() == entry.weights().keys()
    assert examine(run.folder) == []
    once = untimed(run.folder / "frontier.json")
    run.resume()
    assert untimed(run.folder / "frontier.json") == once
