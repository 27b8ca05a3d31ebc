"""Finalists measured again at a run's end: on disk before it counts, resumed, in workers, shown with the frontier."""

import json

import pytest

from morphogen.candidate import Status
from morphogen.cli.console import Lines, as_record
from morphogen.cli.doctor import examine
from morphogen.execution import Execution
from morphogen.keeping import Keep, Mend
from morphogen.notices import Again, Ended, Measured
from morphogen.run import evolve
from morphogen.store.frontier import Frontier
from morphogen.store.ledger import Ledger, Repeated
from tiny import untimed

pytestmark = pytest.mark.trained_before


def repeats(folder):
    """What is on record of repeats, without what the clock says."""
    with Ledger.open(folder, readonly=True) as ledger:
        found = [event for event in ledger.events() if isinstance(event, Repeated)]
    return {one.candidate.id: one.report.replace(timed={}) for one in found}


@pytest.fixture(scope="module")
def repeated(experiment):
    changed = {**dict(experiment.evolution), "repeat": 2}
    return experiment.model_copy(update={"evolution": type(experiment.evolution).model_validate(changed)})


@pytest.fixture(scope="module")
def done(repeated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repeated") / "run"
    said = []
    evolve(repeated, folder, observer=Lines(said.append))
    return folder, said


def test_repeats_leave_the_search_as_it_is_and_show_beside_the_frontier(done, whole):
    folder, said = done
    assert untimed(folder / "lineage.json") == untimed(whole / "lineage.json")
    found = Frontier.read(folder / "frontier.json").candidates
    assert [one.replace(against_root=(), timed={}) for one in found] == [
        one.replace(timed={}) for one in Frontier.read(whole / "frontier.json").candidates
    ]
    compared = {one.id: one.against_root for one in found if one.against_root}
    assert compared
    assert {difference.pairs for differences in compared.values() for difference in differences} == {2}
    assert examine(folder) == []
    assert [line for line in said if line.startswith("again [1/")]
    best = said[-1].strip()
    assert best.startswith("best: ")
    assert best in (folder / "run.log").read_text()
    assert "against the root&#39;s" in (folder / "report.html").read_text()
    assert not [path for path in (folder / "checkpoints").iterdir() if "~" in path.name]


def test_a_pair_reads_the_same_batches_and_begins_where_the_finalist_did(done):
    folder, _ = done
    found = repeats(folder)
    assert {report.status for report in found.values()} == {Status.TRAINED}
    lineage = {node["id"]: node for node in json.loads((folder / "lineage.json").read_bytes())["nodes"]}
    for id, report in found.items():
        name, mark, _ = id.partition("~")
        if mark and name in lineage:
            assert report.tokens.own == lineage[name]["tokens"]["own"]
            assert report.tokens.lineage == lineage[name]["tokens"]["lineage"]
            assert report.metrics.get("bpb_inherited") == lineage[name]["metrics"].get("bpb_inherited")
            assert report.metrics["bpb"] != lineage[name]["metrics"]["bpb"]


@pytest.mark.slow
def test_workers_give_the_same(repeated, done, tmp_path):
    evolve(repeated, tmp_path / "run", execution=Execution(workers=2))
    assert repeats(tmp_path / "run") == repeats(done[0])
    assert untimed(tmp_path / "run" / "frontier.json") == untimed(done[0] / "frontier.json")


def test_a_run_that_is_stopped_between_repeats_goes_on_with_the_rest(repeated, done, tmp_path):
    heard = []

    def stop(notice):
        heard.append(notice)
        if sum(isinstance(one, Again) for one in heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(repeated, tmp_path / "run", observer=stop)
    assert examine(tmp_path / "run") == []
    evolve(repeated, tmp_path / "run", resume=True)
    assert repeats(tmp_path / "run") == repeats(done[0])
    assert untimed(tmp_path / "run" / "frontier.json") == untimed(done[0] / "frontier.json")
    assert examine(tmp_path / "run") == []


def test_a_finished_run_can_be_measured_again_and_go_on_after_that(repeated, experiment, done, tmp_path):
    folder = tmp_path / "run"
    evolve(experiment, folder, keep=Keep(cleanup=False))
    ended = []
    evolve(repeated, folder, resume=True, observer=ended.append)
    assert repeats(folder) == repeats(done[0])
    assert untimed(folder / "frontier.json") == untimed(done[0] / "frontier.json")
    (last,) = (notice for notice in ended if isinstance(notice, Ended))
    assert json.loads(json.dumps(as_record(last)))["against_root"].keys() == last.against_root.keys()
    assert examine(folder) == []

    def stop(notice):
        if isinstance(notice, Measured):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(repeated, folder, resume=True, generations=3, observer=stop)
    assert examine(folder) == []
    evolve(repeated, folder, resume=True, generations=3)
    assert examine(folder) == []


def test_checkpoints_that_repeats_begin_with_outlive_a_clean_up_and_can_be_trained_again(repeated, done, tmp_path):
    folder = tmp_path / "run"

    def stop(notice):
        if isinstance(notice, Again):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(repeated, folder, keep=Keep(cleanup=True), observer=stop)
    for path in (folder / "checkpoints").glob("*.safetensors"):
        path.unlink()
    evolve(repeated, folder, resume=True, mend=Mend(lost=True))
    assert repeats(folder) == repeats(done[0])
