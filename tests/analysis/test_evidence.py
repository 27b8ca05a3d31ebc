"""verify and fidelity on a run that trains in milliseconds."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from morphogen.analysis import fidelity as fidelity_module
from morphogen.analysis.fidelity import fidelity
from morphogen.analysis.recorded import Recorded
from morphogen.analysis.records import Fidelity, Verification
from morphogen.analysis.trials import FOLDER, Trial, Workshop, run_trials
from morphogen.analysis.verify import verify
from morphogen.blueprint.diff import digest
from morphogen.blueprint.schema import Blueprint
from morphogen.candidate import Job, Report, Status
from morphogen.data.mixture import Mixture
from morphogen.data.prepare import prepare
from morphogen.errors import InputError, MorphogenError, RunError
from morphogen.execution.base import Progress
from morphogen.execution.local import InProcess
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.metrics.perplexity import evaluate
from morphogen.network import assemble, build
from morphogen.run import evolve, load
from morphogen.store.ledger import Ledger, Start
from morphogen.training.trial import run_surrogate
from tiny import Cli, write_config

SMALL: dict[str, Any] = {"seeds": 2, "random": 2, "finalists": 2, "times": (1,)}


pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    evolve(load(write_config(tmp_path_factory.mktemp("evidence"))), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The run without its checkpoints: evidence needs none."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


class Interrupting:
    """Does so many jobs, then is interrupted."""

    def __init__(self, inner: InProcess, jobs: int) -> None:
        self.inner, self.jobs = inner, jobs

    def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
        for done, report in enumerate(self.inner.map(jobs, progress)):
            if done == self.jobs:
                raise KeyboardInterrupt
            yield report


def workshop(run: Path, **changes: Any) -> Workshop:
    recorded = Recorded.read(run)
    return Workshop(run, recorded.experiment, prepare(recorded.experiment.data), **changes)


def trials(run: Path) -> list[Trial]:
    recorded = Recorded.read(run)
    designs = [recorded.design(candidate.id) for candidate in recorded.trained[:2]]
    return [Trial("one", design, seed, 256) for design in designs for seed in (0, 1)]


# ------------------------------------------------------------------------------------------------------- trials


@pytest.mark.anew
def test_a_trial_is_a_training_from_scratch_on_all_its_tokens(run: Path) -> None:
    (report, *_) = run_trials(workshop(run), trials(run))
    assert report.status is Status.TRAINED
    assert (report.tokens.own, report.tokens.lineage, report.steps) == (256, 256, 2)
    assert report.inheritance is not None
    assert report.inheritance.inherited == report.inheritance.resized == 0
    assert report.checkpoint is None


def test_guards_caps_and_crossovers_of_the_run_end_no_trial(run: Path) -> None:
    shop = workshop(run)
    strict = {"max_tokens": 128, "instability_threshold": 1e-6, "ppl_stop_threshold": 1.0}
    train = shop.experiment.train.model_copy(update=strict)
    evolution = shop.experiment.evolution.model_copy(update={"crossover": {"merge_ties": 1.0}, "crossover_prob": 1.0})
    changed = shop.experiment.model_copy(update={"train": train, "evolution": evolution})
    shop = Workshop(run, changed, shop.prepared)
    assert [report.tokens.own for report in run_trials(shop, trials(run))] == [256] * 4


def test_finished_trials_are_read_and_not_repeated(run: Path) -> None:
    said: list[str] = []
    first = run_trials(workshop(run), trials(run))
    again = run_trials(workshop(run, say=said.append), trials(run), Interrupting(InProcess(), 0))
    assert again == first, "an executor that did anything would have raised"
    assert said == ["4 of 4 trainings were done before"]


@pytest.mark.slow
def test_two_workers_give_the_same_reports(run: Path) -> None:
    alone = run_trials(workshop(run), trials(run))
    shutil.rmtree(run / FOLDER)
    together = run_trials(workshop(run, workers=2), trials(run))
    assert [one.replace(timed={}) for one in together] == [one.replace(timed={}) for one in alone]


def test_an_interrupt_keeps_what_was_finished(run: Path) -> None:
    shop = workshop(run)
    with pytest.raises(KeyboardInterrupt):
        run_trials(shop, trials(run), Interrupting(InProcess(shop.prepared), 3))
    assert len(list((run / FOLDER).iterdir())) == 3
    said: list[str] = []
    run_trials(workshop(run, say=said.append), trials(run))
    assert said[0] == "3 of 4 trainings were done before"
    assert len(said) == 2


def test_a_damaged_trial_is_trained_again(run: Path) -> None:
    first = run_trials(workshop(run), trials(run))
    for path in (run / FOLDER).iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    again = run_trials(workshop(run), trials(run))
    assert [report.metrics for report in again] == [report.metrics for report in first]


def test_whatever_its_numbers_depend_on_makes_another_trial(run: Path) -> None:
    (one, *_) = trials(run)
    shop = workshop(run)
    seeds = [Trial("one", one.design, seed, tokens) for seed, tokens in ((0, 256), (1, 256), (0, 384))]
    found = run_trials(shop, seeds) + run_trials(workshop(run, split="test"), seeds[:1])
    assert len({report.metrics["bpb"] for report in found}) == 4
    assert len(list((run / FOLDER).iterdir())) == 4


def test_the_test_split_is_what_is_measured_when_asked(run: Path) -> None:
    """The weights of a trial, measured by hand on the test split, give its bits per byte."""
    shop = workshop(run, split="test")
    scored: list[float] = []

    class Measuring:
        def map(self, jobs: Iterable[Job], progress: Progress) -> Iterator[Report]:
            for job in jobs:
                report = run_surrogate(job, None, shop.prepared)
                assert report.checkpoint is not None
                state, blueprint, _ = load_checkpoint(Path(job.run_dir) / report.checkpoint)
                mixture, tokens = Mixture(shop.prepared, 0), shop.experiment.data.eval_tokens
                scored.append(evaluate(assemble(blueprint, state), mixture, tokens, split="test")["bpb"])
                yield report

    run_trials(shop, trials(run)[:1], Measuring())
    shutil.rmtree(run / FOLDER)
    (report,) = run_trials(shop, trials(run)[:1])
    assert report.metrics["bpb"] == pytest.approx(scored[0], rel=1e-6)


def test_fewer_tokens_than_a_batch_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="expected at least one batch of 128"):
        run_trials(workshop(run), [Trial("one", trials(run)[0].design, 0, 100)])


# ------------------------------------------------------------------------------------------------------- verify


def test_verify_compares_finalists_and_the_random_best_with_the_root(run: Path) -> None:
    found = verify(run, **SMALL)
    roles = [one.role for one in found.candidates]
    assert roles[0] == "root"
    assert roles[-1] == "baseline"
    assert roles.count("finalist") <= 2
    assert "finalist" in roles
    assert found.split == "test"
    assert (found.searched, found.random) == (len(Recorded.read(run).trained), 2)
    digests = [digest(Blueprint.model_validate(one.blueprint)) for one in found.candidates if one.role != "baseline"]
    assert len(set(digests)) == len(digests), "each architecture is compared once"
    root, *others = found.candidates
    assert root.p is None
    assert all(len(one.values) == 2 for one in found.candidates)
    for one in others:
        assert one.p == pytest.approx(stats.ttest_ind(one.values, root.values, equal_var=False).pvalue)
        assert one.p_holm is not None
        assert one.p <= one.p_holm <= 1.0
        assert one.mean == pytest.approx(sum(one.values) / 2)
    assert Verification.read(run / "verify.json") == found


def test_verify_compares_seed_by_seed_and_at_several_lengths(run: Path) -> None:
    found = verify(run, **{**SMALL, "random": 0, "finalists": 1, "times": (3, 1)})
    assert found.times == (1, 3)
    assert [(one.role, one.tokens) for one in found.candidates] == [
        (role, factor * found.tokens) for factor in (1, 3) for role in ("root", "finalist")
    ]
    for root, one in (found.candidates[:2], found.candidates[2:]):
        assert root.paired is None
        assert one.paired is not None
        differences = np.subtract(one.values, root.values)
        assert one.paired.difference == pytest.approx(differences.mean())
        assert one.paired.p == pytest.approx(stats.ttest_rel(one.values, root.values).pvalue)
        assert one.paired.p_holm is not None
        assert one.paired.p <= one.paired.p_holm <= min(1.0, 2.0 * one.paired.p)
        assert one.paired.low is not None
        assert one.paired.high is not None
        assert one.paired.low < one.paired.difference < one.paired.high
        assert one.paired.text_error is not None
        assert 0.0 < one.paired.text_error < 0.1


def test_trainings_of_one_seed_begin_with_the_same_weights_where_designs_have_them_in_common(run: Path) -> None:
    """What verify's docstring says: equal seeds give equal tensors for shared genes."""
    recorded = Recorded.read(run)
    root = recorded.design(min(recorded.candidates, key=lambda id: recorded.candidates[id].index)).blueprint
    wider = root.evolve(blocks=(root.blocks[0].evolve(ffn=root.blocks[0].ffn.evolve(hidden=48)),))
    one, other = (build(blueprint.with_vocab(257), seed=5).state_dict() for blueprint in (root, wider))
    assert one.keys() == other.keys()
    alike = {name for name in one if one[name].shape == other[name].shape}
    assert {"emb.weight", "blocks.0.attn.q.weight"} <= alike
    assert not any("ffn" in name and "norm" not in name for name in alike)
    assert all(torch.equal(one[name], other[name]) for name in alike)


def test_verify_repeats_nothing_and_gives_the_same_file(run: Path) -> None:
    said: list[str] = []
    verify(run, **SMALL)
    first = (run / "verify.json").read_bytes()
    verify(run, **SMALL, say=said.append)
    assert (run / "verify.json").read_bytes() == first
    assert not [line for line in said if line.startswith("[")], "nothing was trained"
    shutil.rmtree(run / FOLDER)
    verify(run, **SMALL)
    assert (run / "verify.json").read_bytes() == first, "the same seeds give the same numbers"


def test_verify_takes_a_frontier_file_and_a_baseline_run(run: Path, finished: Path) -> None:
    beside = run.parent / f"{run.name}.json"
    shutil.copy(run / "frontier.json", beside)
    found = verify(beside, seeds=2, finalists=1, tokens=128, times=(1,), baseline=finished)
    assert found.random == 0
    assert found.tokens == 128
    assert [one.role for one in found.candidates][-1] == "baseline"
    assert found.candidates[-1].id.startswith("tiny-0:")


def test_verify_refuses_a_baseline_on_other_text(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    evolve(load(write_config(tmp_path, **{"seq_len: 32": "seq_len: 16"})), other, generations=0)
    with pytest.raises(InputError, match=r"--baseline .* its data section differs"):
        verify(run, baseline=other)


def test_a_training_that_diverges_is_named_and_leaves_nothing_to_compare(run: Path) -> None:
    small = {**SMALL, "random": 0}
    verify(run, **small)
    lost = Report(id="trial", status=Status.FAILED, reason="training diverged at step 1")
    for path in (run / FOLDER).iterdir():
        path.write_text(lost.model_dump_json())
    before = (run / "verify.json").read_bytes()
    with pytest.raises(RunError, match=r"none of \d+ trainings came to an end: training diverged at step 1"):
        verify(run, **small)
    assert (run / "verify.json").read_bytes() == before
    finished = sorted((run / FOLDER).iterdir())[0]
    finished.unlink()
    found = verify(run, **small)
    assert sorted(len(one.values) for one in found.candidates)[-1] == 1
    assert {row["difference"] for row in found.rows()} == {None}, "there is no pair"
    assert all(one.p_holm is None for one in found.candidates)


def test_a_device_that_is_missing_is_refused_before_anything(cli: Cli, run: Path) -> None:
    (run / "verify.json").write_text("a good one")
    before = sorted(path.name for path in run.rglob("*"))
    for command in ("verify", "fidelity"):
        code, out, said = cli(command, run, "--device", "cuda:77")
        assert (code, out) == (2, "")
        assert "device: got 'cuda:77', but this machine has" in said
    assert (run / "verify.json").read_text() == "a good one"
    assert sorted(path.name for path in run.rglob("*")) == before


# ----------------------------------------------------------------------------------------------------- fidelity


def test_fidelity_ranks_the_runs_candidates_at_both_lengths(run: Path) -> None:
    found = fidelity(run, resamples=50)
    recorded = Recorded.read(run)
    assert (found.short_tokens, found.long_tokens) == (128, 384)
    assert len(found.candidates) == len(recorded.trained)
    assert all(one.recorded == recorded.reports[one.id].metrics["bpb"] for one in found.candidates)
    assert [(one.predictor, one.scope) for one in found.predictors] == [
        (name, scope) for scope in ("all", "equal size") for name in ("short", "recorded", "params")
    ]
    short = found.predictors[0]
    want = stats.kendalltau([one.short for one in found.candidates], [one.long for one in found.candidates]).statistic
    assert short.tau.value == pytest.approx(want)
    assert short.pairs == len(found.candidates) * (len(found.candidates) - 1) // 2
    assert Fidelity.read(run / "fidelity.json") == found


def test_fidelity_is_deterministic_and_repeats_nothing(run: Path) -> None:
    fidelity(run, resamples=50)
    first = (run / "fidelity.json").read_bytes()
    said: list[str] = []
    fidelity(run, resamples=50, say=said.append)
    assert (run / "fidelity.json").read_bytes() == first
    assert not [line for line in said if line.startswith("[")]


def test_a_metric_to_be_maximised_is_ranked_the_other_way(run: Path) -> None:
    found = fidelity(run, resamples=20, metric="bpb").candidates
    negated = [one.replace(short=-one.short, long=-one.long, recorded=-one.recorded) for one in found]
    one = fidelity_module.compare(found, "min", np.random.default_rng(0), top_k=1, resamples=20)
    other = fidelity_module.compare(negated, "max", np.random.default_rng(0), top_k=1, resamples=20)
    assert one == other


def test_candidates_that_cannot_be_trained_are_named(run: Path) -> None:
    fidelity(run, resamples=20)
    (first, *_) = sorted((run / FOLDER).iterdir())
    first.write_text(Report(id="trial", status=Status.FAILED, reason="training diverged").model_dump_json())
    found = fidelity(run, resamples=20)
    assert list(found.failures.values()) == ["training diverged"]
    assert len(found.candidates) == len(Recorded.read(run).trained) - 1


# ---------------------------------------------------------------------------------------------- the command line


def test_the_commands_print_tables_and_json(cli: Cli, run: Path) -> None:
    code, out, aside = cli("verify", run, "--seeds", 2, "--random", 1, "--finalists", 1, "--times", 1)
    assert code == 0
    assert out.splitlines()[0].startswith("bpb on the test split after 384 tokens")
    assert "finalist" in out
    assert "trainings" not in out
    assert "[1/" in aside
    code, out, _ = cli("verify", run, "--seeds", 2, "--random", 1, "--finalists", 1, "--times", 1, "--json")
    assert json.loads(out) == json.loads((run / "verify.json").read_bytes())
    code, out, _ = cli("fidelity", run, "--bootstrap", 20, "--top-k", 2)
    assert code == 0
    assert "top-2 regret" in out
    code, out, _ = cli("fidelity", run, "--bootstrap", 20, "--json")
    assert json.loads(out) == json.loads((run / "fidelity.json").read_bytes())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("verify", "RUN", "--seeds", "1"), "--seeds: got 1, expected at least 2"),
        (("verify", "RUN", "--workers", "0"), "--workers: got 0, expected at least 1"),
        (("verify", "RUN", "--metric", "bpbb"), "did you mean 'bpb'"),
        (("verify", "RUN", "--metric", "params"), "--metric: got 'params', expected one of bpb, "),
        (("verify", "RUN", "--metric", "throughput"), "--metric: got 'throughput', expected one of bpb, "),
        (("verify", "RUN", "--metric", "budget_share"), "--metric: got 'budget_share', expected one of bpb, "),
        (("verify", "RUN", "--tokens", "0"), "--tokens: got 0, expected at least 1"),
        (("verify", "RUN", "--tokens", "5"), "expected at least one batch of 128"),
        (("verify", "RUN/nothing"), "no such run folder or frontier file"),
        (("verify", "RUN/run.log"), "ledger.sqlite is missing"),
        (("verify", "EMPTY"), "no run here"),
        (("fidelity", "RUN", "--short", "384"), "expected the first above 0 and below the second"),
        (("fidelity", "RUN", "--metric", "ppl_"), "did you mean 'ppl'"),
        (("fidelity", "RUN", "--metric", "flops_per_token"), "--metric: got 'flops_per_token', expected one of bpb, "),
        (("fidelity", "RUN", "--candidates", "2"), "--candidates: got 2, expected at least 3"),
        (("fidelity", "EMPTY"), "no run here"),
    ],
)
def test_bad_input_is_one_message(cli: Cli, run: Path, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    (tmp_path / "empty").mkdir()
    names = {"RUN": str(run), "EMPTY": str(tmp_path / "empty"), "RUN/run.log": str(run.parent / "stray.json")}
    (run.parent / "stray.json").write_text("{}")
    code, out, error = cli(*[names.get(arg, arg.replace("RUN", str(run))) for arg in args])
    assert code == 2
    assert out == ""
    assert said in error
    assert "Traceback" not in error
    assert not (run / FOLDER).exists(), "something was trained first"


def test_a_run_without_a_closed_generation_is_told(run: Path, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "young", create=True) as ledger:
        ledger.append(Start(run="young", seed=0, experiment=Recorded.read(run).experiment.model_dump(mode="json")))
    with pytest.raises(MorphogenError, match="no generation of this run is closed yet"):
        verify(tmp_path / "young")


def test_a_place_for_trials_that_is_a_file_is_one_message(cli: Cli, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("trials"))
    (tmp_path / "other" / "trials").touch()
    code, _, error = cli("verify", tmp_path / "other", "--random", 0, "--seeds", 2, "--tokens", 128)
    assert code == 2
    assert error.endswith(f"morphogen: {tmp_path}/other/trials: is a file, expected a folder of the run's own\n")
