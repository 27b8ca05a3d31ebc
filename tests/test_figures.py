"""The registry of figures: what is declared holds wherever figures are compared, and nothing is guessed."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from morphogen.analysis.recorded import Recorded
from morphogen.blueprint.yaml import read
from morphogen.candidate import Candidate, Report, Status
from morphogen.checks import check_settings
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.figures import Figure, Ratio, declare, direction, figure_called, find, known
from morphogen.report.tables import frontier_rows
from morphogen.run import evolve
from morphogen.selection.objectives import weighted_scores
from morphogen.selection.parents import Pool, Rules, select_parent
from tiny import write_config

pytestmark = pytest.mark.trained_before

EVERY = dict(known())
COMPARED = sorted(name for name, figure in EVERY.items() if figure.better != "none")

DENSE = {"emb": {"dim": 8, "vocab": 10}, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]}


def one(name: str) -> str:
    """A name that a figure may have: itself, or one of its family."""
    return re.sub("<(n|length|depth)>", "3", re.sub("<(shard|probe)>", "web", name))


@pytest.mark.parametrize("name", EVERY)
def test_every_figure_says_what_it_is(name: str) -> None:
    figure = EVERY[name]
    assert figure.unit
    assert figure.summary.endswith(".")
    assert find(one(name)) == figure
    text = (Path(__file__).parent.parent / "docs" / "experiments.md").read_text()
    row = f"| `{name}` | {figure.unit} | {figure.better} | {figure.sort} | {figure.summary} |"
    assert f"| `{name}` | {figure.unit} | {figure.better} |" in text, (
        f"add to the figures of docs/experiments.md: {row}"
    )


@pytest.mark.parametrize("name", COMPARED)
def test_verify_lexicase_weights_and_tables_agree_on_what_is_better(name: str) -> None:
    figure, better = one(name), EVERY[name].better
    assert better != "none"
    first = Report(id="a", status=Status.TRAINED, metrics={figure: 1.0})
    second = first.replace(id="b", metrics={figure: 2.0})
    best = "a" if better == "min" else "b"
    reports, objectives = {"a": first, "b": second}, {figure: direction(figure, {}, "x")}
    pool = Pool.of(reports.values(), Rules({}, cases=(figure,)))
    assert pool.ids[select_parent("lexicase", pool, np.random.default_rng(0))] == best
    assert "ab"[int(weighted_scores([first, second], {figure: 1.0}, {}).argmax())] == best
    experiment = Experiment.model_validate({"model": DENSE})
    candidates = {id: Candidate(id=id, index=i, generation=0, blueprint={}) for i, id in enumerate("ab")}
    run = Recorded(Path(), "run", 0, experiment, candidates, reports, ("a", "b"))
    assert run.direction(figure) == better
    assert run.best(figure)[0] == best
    assert frontier_rows(candidates, reports, "ab", objectives)[0]["id"] == best


LESS = ("recall_nll", "state_bytes", "router_overflow", "expert_load_max_over_mean", "train_seconds", "ppl_web_rec_2")
MORE = ("throughput", "decode_throughput", "long_recall", "router_entropy", "recurrence_gain", "novelty")


def test_directions_that_a_prefix_would_guess_wrong() -> None:
    assert {name: direction(name, {}, "x") for name in LESS + MORE} == {
        **dict.fromkeys(LESS, "min"),
        **dict.fromkeys(MORE, "max"),
    }
    assert direction("bpb", {"bpb": "max"}, "x") == "max"  # what an experiment says comes first


@pytest.mark.parametrize("name", ["entropy", "trained", "kv_bytes_", "graph_entropy", "recall_chance"])
def test_what_nobody_declared_is_asked_for(name: str) -> None:
    with pytest.raises(InputError, match=rf"here: which way is '{name}' better\?"):
        direction(name, {}, "here")


def test_a_composite_is_asked_for_even_where_its_name_looks_like_a_figures() -> None:
    with pytest.raises(InputError, match="a composite metric without `better`"):
        direction("bpb_per_layer", {"bpb_per_layer": None}, "here")
    assert direction("bpb_per_layer", {"bpb_per_layer": "max"}, "here") == "max"


def test_two_figures_cannot_share_a_name() -> None:
    with pytest.raises(RuntimeError, match="two figures are called bpb"):
        declare(Figure("bpb", unit="nats", better="min", sort="metric", summary="Another."))


def test_the_more_special_family_wins() -> None:
    names = {"ppl_rec_2": "ppl_rec_<n>", "ppl_web_rec_2": "ppl_<shard>_rec_<n>", "ppl_web": "ppl_<shard>"}
    names |= {"bpb_sample": "bpb_sample", "bpb_inherited": "bpb_inherited", "bpb_web": "bpb_<shard>"}
    assert {name: figure.name for name in names if (figure := find(name))} == names
    assert figure_called("score") == "score"


@pytest.mark.parametrize(
    ("of", "epsilon", "want"),
    [
        ((1.0, 0.0), 0.0, math.nan),
        ((1.0, 0.0), 0.5, 2.0),
        ((1.0, -0.1), 0.5, -2.0),
        ((1.0, -0.0), 0.5, 2.0),
        ((1.0, 4.0), 0.5, 0.25),
        ((1.0, 5e-324), 0.0, math.inf),
    ],
)
def test_a_ratio_and_its_epsilon(of: tuple[float, float], epsilon: float, want: float) -> None:
    made = Ratio(op="ratio", of=("a", "b"), epsilon=epsilon)
    value = made.value(dict(zip("ab", of, strict=True)))
    assert value == want or (math.isnan(value) and math.isnan(want))


# ---------------------------------------------------------------- what a root cannot have

ROUTED = {"emb": {"dim": 8, "vocab": 10}, "blocks": [{"ffn": {"kind": "moe", "hidden": 8, "n_experts": 2, "k": 1}}]}
LOOPED = {**DENSE, "recurrences": [{"start": 0, "end": 1, "test_recurrences": [1, 3]}]}
PROBED = {"shards": [{"source": "a.txt"}, {"source": "probe:mqar"}]}


def check(model: dict[str, object], data: dict[str, object] | None = None, **evolution: object) -> None:
    given = {"model": model, "data": data or {"shards": [{"source": "a.txt"}]}, "evolution": evolution}
    experiment = Experiment.model_validate(given)
    check_settings(experiment, experiment.model)


RATIO = {"per_entropy": {"op": "ratio", "of": ["bpb", "router_entropy"]}}


@pytest.mark.parametrize(
    ("evolution", "place", "needs"),
    [
        ({"objectives": {"router_entropy": "max"}}, "evolution.objectives.router_entropy", "a mixture of experts"),
        ({"constraints": {"router_overflow": {"max": 0.1}}}, "evolution.constraints.router_overflow", "a mixture"),
        ({"rung1_gates": {"router_entropy": {"min": 0.1}}}, "evolution.rung1_gates.router_entropy", "a mixture"),
        ({"objectives": {"long_recall": "max"}}, "evolution.objectives.long_recall", "the recall probe"),
        ({"weights": {"long_recall": 1.0}}, "evolution.weights.long_recall", "the recall probe"),
        ({"lexicase_cases": ["recall_nll"]}, "evolution.lexicase_cases: recall_nll", "the recall probe"),
        ({"map_elites": {"long_recall": {}}}, "evolution.map_elites.long_recall", "the recall probe"),
        ({"objectives": {"ppl_rec_3": "min"}}, "evolution.objectives.ppl_rec_3", "a recurrence in the model"),
        ({"objectives": {"per_entropy": "min"}, "composite_metrics": RATIO}, "made of router_entropy", "a mixture"),
        ({"objectives": {"bpb_inherited": "min"}}, "evolution.objectives.bpb_inherited", "weights to start from"),
        ({"objectives": {"bpb_b_txt": "min"}}, "did you mean 'bpb_a_txt'", ""),
        ({"objectives": {"parms": "min"}}, "did you mean 'params'", ""),
    ],
)
def test_a_figure_that_the_root_cannot_have_is_refused(evolution: dict[str, object], place: str, needs: str) -> None:
    with pytest.raises(InputError) as told:
        check(DENSE, **evolution)
    assert place in str(told.value)
    assert needs in str(told.value)
    assert "did you mean" in str(told.value) or needs


def test_what_the_root_has_and_what_descendants_may_bring_is_allowed() -> None:
    check(ROUTED, objectives={"router_entropy": "max"}, rung1_gates={"router_overflow": {"max": 0.5}})
    check(DENSE, lexicase_cases=["router_entropy", "bpb_inherited"], weights={"moe": 1.0, "ppl_rec_2": 1.0})
    check(LOOPED, objectives={"ppl_rec_3": "min", "ppl_a_txt_rec_1": "min"})
    check(DENSE, PROBED, objectives={"long_recall": "max"}, weights={"long-recall": 1.0})
    check(DENSE, objectives={"throughput": "max", "novelty": "max", "budget_share": "max"})
    made = {"low": {"op": "ratio", "of": ["bpb", "moe_blocks"], "better": "min"}}
    check(DENSE, composite_metrics=made, objectives={"low": "min"}, lexicase_cases=["low"])


@pytest.mark.parametrize(("field", "value"), [("lexicase_cases", ["low"]), ("weights", {"low": 1.0})])
def test_a_composite_that_is_compared_must_say_which_way_is_better(field: str, value: object) -> None:
    made = {"low": {"op": "product", "of": ["bpb", "params"]}}
    with pytest.raises(InputError, match="which way is 'low' better"):
        check(DENSE, composite_metrics=made, **{field: value})
    check(DENSE, composite_metrics=made, objectives={"low": "min"}, **{field: value})


@pytest.mark.parametrize("source", ["rec_2", "web_rec_2"])
def test_a_shard_whose_figures_would_be_others_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=rf"a shard called '{source}' is measured as"):
        check(DENSE, {"shards": [{"source": source}]})


# ---------------------------------------------------------------- what a run reports

ALL_KINDS = """\
    - attn: {kind: MHA, heads: 2, head_dim: 8, selector: dsa, selector_topk: 4}
      ffn: {kind: moe, hidden: 16, n_experts: 2, k: 1, capacity_factor: 1.0}
  recurrences: [{start: 0, end: 1, max_train_recurrence: 2, test_recurrences: [1, 2]}]
"""


def test_every_figure_of_a_run_is_declared_and_an_objective_without_a_value_ends_nothing(tmp_path: Path) -> None:
    plain = """\
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      ffn: {kind: dense, hidden: 32}
"""
    path = write_config(
        tmp_path,
        **{
            plain: ALL_KINDS,
            "generations: 2, population: 3": "generations: 1, population: 1, anneal_tokens: 128",
            "lr: 0.01": "lr: auto",
        },
    )
    text = path.read_text().replace("]\n  eval_tokens", ", {source: 'probe:mqar:4'}]\n  eval_tokens")
    made = "nothing: {op: weighted_sum, of: {params: 0.0}}, per_nothing: {op: ratio, of: [bpb, nothing]}"
    goal = f"{{objectives: {{bpb: min, per_nothing: min}}, composite_metrics: {{{made}}}, generations"
    path.write_text(text.replace("{generations", goal))
    run = evolve(read(str(path)).parse(Experiment), tmp_path / "run")
    names: dict[str, str] = {}
    for entry in run.lineage.nodes:
        for table, values in (("metric", entry.metrics), ("timed", entry.timed), ("cost", entry.costs)):
            names |= dict.fromkeys(values, table)
    wanted = {"router_entropy", "recall_nll", "ppl_rec_2", "kv_bytes", "bpb_inherited", "peak_memory_bytes", "params"}
    assert wanted <= names.keys()
    for name, table in names.items():
        figure = find(name)
        assert figure is not None or name == "nothing", name
        assert figure is None or table == {"search": "metric"}.get(figure.sort, figure.sort), name
    unseen = {name for name in EVERY if not any(EVERY[name].covers(found) for found in names)}
    foreign = {"foreign_router_entropy", "foreign_load_max_over_mean"}
    placed = {"gpu", "placed_memory_bytes"}
    assert unseen == {"novelty", "ppl_math", *foreign, *placed}  # asked for by no setting of this experiment


def test_names_in_the_docs_are_names_of_figures() -> None:
    text = (Path(__file__).parent.parent / "docs" / "experiments.md").read_text()
    table = text[text.index("## Figures") :].split("\n## ", 2)[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.M)) == set(EVERY)
