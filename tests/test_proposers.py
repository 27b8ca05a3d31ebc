"""Programs outside that drive a run: `ask`, `tell` and `evolution.proposer`, in runs that train."""

import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphogen.cli import main
from morphogen.errors import InputError, RunError
from morphogen.experiment import Experiment, Proposer
from morphogen.notices import Closed, Measured, Notice, Warned
from morphogen.proposers import MOST_BYTES, hear, tell
from morphogen.run import Run, evolve, load
from morphogen.store.ledger import Asked, Ledger
from morphogen.store.lineage import Lineage
from morphogen.store.proposals import Answer, Refused, State
from tiny import Cli, events, untimed, write_config

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.trained_before]
BANDIT = Path(__file__).parent.parent / "examples" / "proposer"

#: Counts its calls in a file beside it, and proposes an edit of the first parent.
COUNTING = """\
import json, pathlib, sys
state = json.load(sys.stdin)
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + f"{state['generation']} " if calls.exists() else f"{state['generation']} ")
edit = {"operator": "widen_ffn", "seed": state["generation"]}
print(json.dumps({"proposals": [{"parent": state["parents"][0]["id"], "edits": [edit]}]}))
"""


def with_proposer(experiment: Experiment, *command: object, **more: object) -> Experiment:
    proposer = Proposer.model_validate({"command": [sys.executable, *map(str, command)], **more})
    return experiment.model_copy(update={"evolution": experiment.evolution.model_copy(update={"proposer": proposer})})


@pytest.fixture(scope="module")
def experiment(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return load(write_config(tmp_path_factory.mktemp("text")))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "counting.py"
    path.write_text(COUNTING)
    return path


def test_the_bandit_of_the_example_proposes_in_a_run(experiment: Experiment, tmp_path: Path, cli: Cli) -> None:
    run = evolve(with_proposer(experiment, BANDIT / "bandit.py", share=0.67), tmp_path / "run")
    nodes = run.lineage.nodes
    with Ledger.open(run.folder, readonly=True) as ledger:
        asked = [event for event in ledger.events() if isinstance(event, Asked)]
    for event in asked[1:]:
        bandits = [candidate for candidate in event.candidates if candidate.proposer == "bandit"]
        assert bandits
        assert len(bandits) + len(event.refused) == 2
        assert len(event.candidates) + len(event.refused) == 3
    assert {node.id for node in nodes if node.proposer} == {
        candidate.id for event in asked for candidate in event.candidates if candidate.proposer
    }
    assert {node.status.value for node in nodes} == {"trained"}
    assert all(node.inheritance is not None and node.inheritance.inherited for node in nodes[1:])
    code, said, _ = cli("lineage", run.folder)
    assert code == 0
    assert ", proposed by bandit" in said
    assert cli("doctor", run.folder)[0] == 0


def test_the_bandit_credits_operators_by_what_selection_reads_beside_the_parent_that_trained_on() -> None:
    def past(id: str, generation: int, parents: list[str], bpb: float, *operators: str, twin: float = 0.0) -> dict:
        edits = [{"operator": operator} for operator in operators]
        made = {"share": 0.5, "metrics": {"bpb": twin}} if twin else None
        told = {
            "id": id,
            "generation": generation,
            "parents": parents,
            "edits": edits,
            "status": "trained",
            "twin": made,
        }
        return {**told, "metrics": {"bpb": bpb}, "costs": {}, "timed": {}}

    history = [
        past("root", 0, [], 4.0),
        past("root-on", 1, ["root"], 3.0),
        past("better", 1, ["root"], 2.5, "widen_ffn"),
        past("worse", 1, ["root"], 3.5, "swap_blocks"),
        past("judged", 1, ["root"], 1.0, "add_heads", twin=4.0),
        past("alone", 2, ["better"], 2.0, "widen_ffn"),
    ]
    gains = runpy.run_path(str(BANDIT / "bandit.py"))["gains"]
    found = gains({"objectives": {"bpb": "min"}, "history": history})
    assert found == {"widen_ffn": [0.5, 0.5], "swap_blocks": [-0.5], "add_heads": [0.5]}


def test_the_example_is_a_valid_experiment(cli: Cli) -> None:
    assert cli("validate", BANDIT / "experiment.yaml")[0] == 0


def test_replay_asks_nobody_and_a_run_that_was_stopped_has_the_same_lineage(
    experiment: Experiment, script: Path, tmp_path: Path
) -> None:
    whole = evolve(with_proposer(experiment, script, tmp_path / "whole-calls"), tmp_path / "whole")

    def stop(notice: Notice) -> None:
        if isinstance(notice, Closed) and notice.generation.generation == 1:
            raise KeyboardInterrupt

    asking = with_proposer(experiment, script, tmp_path / "calls", timeout_seconds=50)
    with pytest.raises(KeyboardInterrupt):
        evolve(asking, tmp_path / "run", observer=stop)
    changed = with_proposer(experiment, script, tmp_path / "calls")  # who is asked may change on the way
    evolve(changed, tmp_path / "run", resume=True)
    assert events(tmp_path / "run")[1:] == events(whole.folder)[1:]
    assert untimed(tmp_path / "run" / "lineage.json") == untimed(whole.folder / "lineage.json")
    evolve(changed, tmp_path / "run", resume=True)
    assert (tmp_path / "calls").read_text() == "1 2 "


def test_bad_answers_cost_a_place_each_and_are_told_but_never_the_run(experiment: Experiment, tmp_path: Path) -> None:
    said: list[str] = []

    def hear_warnings(notice: Notice) -> None:
        if isinstance(notice, Warned):
            said.append(notice.text)

    asking = with_proposer(experiment, "-c", "import sys; sys.exit('no idea')", name="oracle")
    evolve(asking, tmp_path / "run", generations=1, observer=hear_warnings)
    with Ledger.open(tmp_path / "run", readonly=True) as ledger:
        asked = [event for event in ledger.events() if isinstance(event, Asked)]
    assert len(asked[1].candidates) == experiment.evolution.population - 1
    assert asked[1].refused == (Refused(proposer="oracle", reason="exit code 1: no idea"),)
    assert said == ["proposer oracle: a place is lost: exit code 1: no idea"]
    assert said[0] in (tmp_path / "run" / "run.log").read_text()


@pytest.fixture
def question(experiment: Experiment) -> State:
    return State(
        run="tiny-0", generation=1, generations=2, seats=2, objectives={"bpb": "min"}, constraints={},
        operators=(), parents=(), frontier=(), history=(), refused=(), waiting=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(60)", "no answer within 1 seconds"),
        ("import os, time; os.close(1); os.close(2); time.sleep(60)", "no answer within 1 seconds"),
        ("import subprocess; subprocess.Popen(['sleep', '60'])", "the answer: not JSON"),
        ("print('hello')", "the answer: not JSON"),
        ("print('[' * 100000)", "the answer: not JSON"),
        ("pass", "the answer: not JSON"),
        ("print('[]')", "expected an object with a list of 'proposals'"),
        ("print('{\"proposals\": 3}')", "expected an object with a list of 'proposals'"),
        ('print(\'{"proposals": [], "name": 3}\')', "the answer: name: unknown field"),
        ('print(\'{"proposals": [], "proposer": "../x"}\')', "the answer: proposer"),
        ("print('{\"proposals\": [7]}')", "proposals[0]: got 7, expected an object"),
        ("print('{\"proposals\": [{}]}')", "proposals[0]: "),
        ('print(\'{"proposals": [{"edits": [{"operater": "x"}]}]}\')', "did you mean 'operator'?"),
        ("print('{\"proposals\": [' + '[' * 400 + ']' * 400 + ']}')", "proposals[0]: nested too deep"),
        (
            "print('{\"proposals\": [{\"blueprint\": {\"blocks\": ' + '[' * 400 + ']' * 400 + '}}]}')",
            "proposals[0]: nested too deep",
        ),
        (f"print('x' * {MOST_BYTES + 1})", f"the answer is longer than {MOST_BYTES:,} bytes"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_whatever_a_program_does_is_an_answer_or_a_refusal(question: State, code: str, reason: str) -> None:
    began = time.monotonic()
    proposer = Proposer(command=(sys.executable, "-S", "-c", code), timeout_seconds=1.0)
    (answer,) = hear(proposer, question)
    assert isinstance(answer, Refused)
    assert reason in answer.reason
    assert time.monotonic() - began < 20.0


def test_what_a_program_leaves_running_does_not_keep_its_answer(question: State) -> None:
    said = 'print(\'{"proposals": [], "proposer": "quick"}\', flush=True)'
    code = f"import subprocess; subprocess.Popen(['sleep', '3'], start_new_session=True); {said}"
    began = time.monotonic()
    assert hear(Proposer(command=(sys.executable, "-S", "-c", code)), question) == []
    assert time.monotonic() - began < 3.0


def test_a_program_that_is_gone_costs_a_place_too(question: State) -> None:
    (answer,) = hear(Proposer(command=("/nowhere/oracle",)), question)
    assert isinstance(answer, Refused)
    assert answer.reason == "/nowhere/oracle: cannot be run: No such file or directory"


def test_more_proposals_than_places_are_passed_over(question: State) -> None:
    one = {"parent": "root-0-0000", "edits": [{"operator": "widen_ffn"}]}
    code = f"print({json.dumps(json.dumps({'proposals': [one] * 5, 'proposer': 'many'}))})"
    answers = hear(Proposer(command=(sys.executable, "-S", "-c", code)), question)
    assert [answer.proposer for answer in answers] == ["many", "many"]


def test_a_command_in_a_file_is_refused_unless_code_is_allowed(
    no_code: None, experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"evolution.proposer.command: names a program, .* --allow-code"):
        evolve(with_proposer(experiment, "x.py"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    file = write_config(tmp_path, **{"topk_keep: 2": "topk_keep: 2, proposer: {command: [python3]}"})
    for command in (["validate"], ["run", "--out", str(tmp_path / "run")], ["run", "--dry-run"]):
        with pytest.raises(SystemExit) as end:
            main([*command, str(file)])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{file}:15:69 evolution.proposer.command" in err
        assert "where you trust it, allow it with --allow-code" in err


def test_a_program_beside_the_experiment_is_found_and_one_that_is_nowhere_is_told(tmp_path: Path, cli: Cli) -> None:
    file = write_config(tmp_path, **{"topk_keep: 2": "topk_keep: 2, proposer: {command: [python3, oracle.py]}"})
    (tmp_path / "oracle.py").touch()
    proposer = load(file).evolution.proposer
    assert proposer is not None
    assert proposer.command == ("python3", str(tmp_path / "oracle.py"))
    file.write_text(file.read_text().replace("python3", "pythn4"))
    code, _, err = cli("validate", file)
    assert code == 2
    assert "pythn4: no such program" in err


@pytest.fixture(scope="module")
def begun(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evolve(experiment, tmp_path_factory.mktemp("begun") / "run", generations=0)


@pytest.fixture
def run(begun: Run, tmp_path: Path) -> Run:
    subprocess.run(["cp", "-r", str(begun.folder), str(tmp_path / "run")], check=True)
    return Run(tmp_path / "run", begun.experiment, begun.seed)


def test_a_run_is_driven_by_ask_and_tell(run: Run, tmp_path: Path, cli: Cli) -> None:
    code, said, _ = cli("ask", run.folder, "--json")
    assert code == 0
    state = State.model_validate_json(said)
    assert (state.generation, state.seats) == (1, 3)
    (root,) = state.parents
    assert root.survivor
    assert root.frontier
    assert "widen_ffn" in root.operators
    assert state.history[0].metrics["bpb"] > 0.0
    assert {operator.name for operator in state.operators} > set(root.operators)
    blueprint = json.loads(json.dumps(root.blueprint))
    blueprint["blocks"][0]["ffn"]["hidden"] = 40
    answer = {"proposals": [{"parent": root.id, "edits": [{"operator": "add_heads"}]}, {"blueprint": blueprint}]}
    Answer.model_validate(answer)
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    assert cli("tell", run.folder, tmp_path / "answer.json", "--proposer", "me")[0] == 0
    waiting = State.model_validate_json(cli("ask", run.folder, "--json")[1])
    assert (waiting.seats, len(waiting.waiting)) == (1, 2)
    code, told, _ = cli("status", run.folder)
    assert "finished" in told
    assert cli("doctor", run.folder)[0] == 0
    run.resume(generations=1)
    nodes = Lineage.read(run.folder / "lineage.json").nodes
    assert [node.proposer for node in nodes] == ["", "me", "me", ""]
    assert nodes[2].id.startswith("proposed-2-")
    assert nodes[2].inheritance is not None
    assert nodes[2].inheritance.resized > 0
    after = State.model_validate_json(cli("ask", run.folder, "--json")[1])
    assert (after.generation, after.seats, after.waiting) == (2, 3, ())
    assert [past.proposer for past in after.history] == ["", "me", "me", ""]
    assert cli("doctor", run.folder)[0] == 0


def test_tell_takes_all_or_nothing_with_a_line_for_each_mistake(run: Run, tmp_path: Path, cli: Cli) -> None:
    root = run.lineage.nodes[0].id
    good = {"parent": root, "edits": [{"operator": "add_heads"}]}
    file = tmp_path / "answer.json"
    before = events(run.folder)
    for answer, said in (
        ({"proposals": [good, {"parent": root, "edits": [{"operator": "add_hades"}]}]}, "proposals[1]: operator: got"),
        ({"proposals": [good, good]}, "proposals[1]: the same candidate"),
        ({"proposals": [{"edits": []}, good, {"blueprint": {"blocks": 3}}]}, "\n"),
        ({"proposals": [good] * 4}, "got 4 proposals, expected at most 3"),
        ({"proposals": [good, {"blueprint": {"blocks": 3}}]}, "proposals[1]: blueprint: "),
        ({"proposals": [{"edits": []}]}, "expected either edits of a parent, or a blueprint"),
        ({"answers": []}, "expected an object with a list of 'proposals'"),
    ):
        file.write_text(json.dumps(answer))
        code, out, err = cli("tell", run.folder, file)
        assert code == 2
        assert out == ""
        assert err.startswith(f"morphogen: {file}: ")
        assert said in err
        assert err.count("\n") == 1
    for args in ([tmp_path / "none.json"], [file, "--proposer", "../x"]):
        code, _, err = cli("tell", run.folder, *args)
        assert code == 2
        assert err.count("\n") == 1
    assert events(run.folder) == before


def test_nobody_tells_a_run_that_is_at_work_or_has_a_generation_open(
    run: Run, experiment: Experiment, tmp_path: Path, cli: Cli
) -> None:
    with Ledger.open(run.folder), pytest.raises(RunError, match="another writer has this run open"):
        tell(run.folder, b'{"proposals": []}', "x", "me")

    def stop(notice: Notice) -> None:
        if isinstance(notice, Measured):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(experiment, run.folder, resume=True, generations=1, observer=stop)
    state = State.model_validate_json(cli("ask", run.folder, "--json")[1])
    assert state.seats == 0
    with pytest.raises(RunError, match=r"generation 1 is open, \d of its candidates are not trained"):
        tell(run.folder, b'{"proposals": []}', "x", "me")


def test_standard_input_is_read_and_the_schemas_are_printed(run: Run, cli: Cli) -> None:
    root = run.lineage.nodes[0].id
    answer = {"proposals": [{"parent": root, "edits": [{"operator": "widen_ffn"}]}]}
    command = [sys.executable, "-c", "from morphogen.cli import main; main()", "tell", str(run.folder), "--json"]
    done = subprocess.run(command, input=json.dumps(answer), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["proposer"] == "tell"
    for which, field in (("state", "seats"), ("answer", "proposals")):
        code, said, _ = cli("schema", which)
        assert code == 0
        assert field in json.loads(said)["properties"]


def test_a_baseline_takes_no_proposals(tmp_path: Path) -> None:
    file = write_config(tmp_path, **{"topk_keep: 2": "topk_keep: 2, baseline: control, proposer: {command: [python3]}"})
    with pytest.raises(InputError, match="a baseline, and a run without edits"):
        load(file)
