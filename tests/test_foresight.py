"""What is told of an experiment before anything trains: what is missing, what cannot be, what nothing reads."""

import inspect
import json
import re
from pathlib import Path

import pytest

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads
from morphogen.checks import examined, validated
from morphogen.errors import InputError
from morphogen.experiment import Evolution, Experiment
from morphogen.knobs import _of_search, knobs
from morphogen.reading import located, read_experiment
from morphogen.selection.parents import SELECTORS
from tiny import Cli

ROOT = Path(__file__).parent.parent

TEXT = """\
model:
  emb: {dim: 16}
  blocks:
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      ffn: {kind: dense, hidden: 32}
train: {lr: 0.01}
data:
  tokenizer: bytes
  seq_len: 16
  batch_size: 4
  shards: [{source: text.txt}]
evolution: {generations: 0, population: 1, rung1_tokens: 640, rung2_tokens: 640}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.safetensors").write_bytes((100).to_bytes(8, "little") + b'{"a": {"data_offsets"')
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    (tmp_path / "cut.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 8)
    (tmp_path / "foreign.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0" * 16)
    (tmp_path / "deep.safetensors").write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    return tmp_path


def told(place: Path, *changes: tuple[str, str]) -> str:
    """What is wrong with a changed file."""
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (place / "f.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        validated(str(place / "f.yaml"))
    message = str(error.value)
    assert all(line.startswith(f"{place}/f.yaml:") for line in message.splitlines())
    return message.replace(f"{place}/", "")


SOURCE, TRAIN, EVOLUTION = "source: text.txt", "lr: 0.01", "generations: 0"
#: What is wrong -> (old text, new text, what is said of it)
WRONG: dict[str, tuple[str, str, str]] = {
    "text that is missing": (SOURCE, "source: txt.txt", "f.yaml:11:13 data.shards[0].source: data source 'txt.txt'"),
    "a file without text": (SOURCE, "source: empty.txt", ":11:13 data.shards[0].source: empty.txt: the file is empty"),
    "a folder without text": (SOURCE, "source: empty", ":11:13 data.shards[0].source: data source 'empty'"),
    "held-out text that is missing": (
        "  shards",
        "  eval_shards: [{source: stdlib-code}, {source: ./gone}]\n  shards",
        ":11:41 data.eval_shards[1].source: data source 'gone'",
    ),
    "healing text that is missing": (
        "  shards",
        "  healing_tokens: 9\n  healing_shards: [{source: gone.txt}]\n  shards",
        ":12:21 data.healing_shards[0].source: data source 'gone.txt'",
    ),
    "a tokenizer that is missing": ("bytes", "./gone.json", ":8:3 data.tokenizer: gone.json: no such file or folder"),
    "a checkpoint that is missing": (
        TRAIN,
        "init_checkpoint: a.safetensors",
        "init_checkpoint: a.safetensors: no such",
    ),
    "no checkpoint": (TRAIN, "init_checkpoint: half.safetensors", "half.safetensors: not a readable checkpoint"),
    "half a checkpoint": (TRAIN, "init_checkpoint: cut.safetensors", "not a readable checkpoint: it is cut short"),
    "a deep header": (TRAIN, "init_checkpoint: deep.safetensors", "deep.safetensors: not a readable checkpoint"),
    "another's checkpoint": (TRAIN, "init_checkpoint: foreign.safetensors", "it was not written by morphogen"),
    "nothing to start from": (
        EVOLUTION,
        "weight_inheritance: init",
        ":12:13 evolution.weight_inheritance: is 'init', but train.init_checkpoint is not set",
    ),
    "templates that are missing": (EVOLUTION, "templates: t.yaml", ":12:13 evolution.templates: t.yaml: no such file"),
    "a root that is too large": (
        EVOLUTION,
        "rung0_thresholds: {params: 10}",
        ":12:13 evolution.rung0_thresholds: the root is rejected by rung 0: params is 6720, above",
    ),
    "a root that lacks what is asked for": (
        EVOLUTION,
        "min_moe_blocks: 1, structural_gates: reject",
        ":12:32 evolution.structural_gates: the root is rejected by rung 0: moe_blocks is 0, below",
    ),
    "rungs below a step": (
        "rung1_tokens: 640, rung2_tokens: 640",
        "rung1_tokens: 30, rung2_tokens: 30",
        "evolution.rung1_tokens: with rung2_tokens that is 60 in all, less than one step of 64 tokens",
    ),
    "halving below a step": (
        "rung1_tokens: 640, rung2_tokens: 640",
        "rungs: asha, min_tokens: 63",
        "evolution.min_tokens: is 63, less than one step of 64 tokens (seq_len 16 x batch_size 4)",
    ),
    "halving of which a later rung is below a step": (
        "rung1_tokens: 640, rung2_tokens: 640",
        "rungs: asha, min_tokens: 64, max_tokens: 200",
        "evolution.max_tokens: is 200, which leaves rung 3 8, less than one step of 64 tokens",
    ),
    "promotion below a step": (
        EVOLUTION,
        "promotion_prob: 0.5, promotion_steps_multiplier: 0.05",
        "evolution.promotion_prob: by both multipliers the last rung's budget becomes 32 tokens, less than one step",
    ),
    "annealing below a step": (EVOLUTION, "anneal_tokens: 63", "evolution.anneal_tokens: is 63, less than one step of"),
    "a cap below a step": (TRAIN, "max_tokens: 63", ":6:9 train.max_tokens: is 63, less than one step of 64 tokens"),
    "a layer that no machine holds": (
        "hidden: 32",
        "hidden: 99999999999999",
        ":1:1 model: one candidate needs about",
    ),
    "a width that no machine holds": ("dim: 16", "dim: 99999999999", "which no machine has"),
    "a vocabulary that no machine holds": ("dim: 16", "dim: 16, vocab: 9999999999999", "which no machine has"),
    "experts that no machine holds": (
        "kind: dense, hidden: 32",
        "kind: moe, hidden: 8, n_experts: 1000000000000",
        "which no machine has",
    ),
    "numbers beyond all machines": ("dim: 16", "dim: 9223372036854775807", "which no machine has"),
    "more heads than can be listed": ("heads: 2", "heads: 1000000000, alibi: true", "attn.heads: got 1000000000"),
    "a batch that no machine holds": (
        "batch_size: 4",
        "batch_size: 100000000000",
        ":10:3 data.batch_size: one candidate",
    ),
    "an objective that nothing measures": (
        EVOLUTION,
        "objectives: {bpbb: min}",
        ":12:26 evolution.objectives.bpbb: got 'bpbb'",
    ),
    "an objective of the run's end": (
        EVOLUTION,
        "objectives: {bpb: min, bpb_annealed: min}",
        "evolution.objectives.bpb_annealed: got 'bpb_annealed', by which nobody is selected",
    ),
    "a case that the root alone has": (EVOLUTION, "lexicase_cases: [lr]", "got 'lr', by which nobody is selected"),
    "a figure made of one of the run's end": (
        EVOLUTION,
        "composite_metrics: {a: {op: product, of: [bpb_annealed, params]}}",
        "evolution.composite_metrics.a.of: got 'bpb_annealed', by which nobody is selected",
    ),
    "a gate of what is known after it": (
        EVOLUTION,
        "composite_metrics: {a: {op: product, of: [novelty, params]}}, rung1_gates: {a: {min: 1}}",
        "evolution.rung1_gates.a: got 'novelty', which is not known of a candidate at its gate",
    ),
    "a rate that is neither": (TRAIN, "lr: automatic", "train.lr: got 'automatic', expected a number or auto"),
    "a precision that is none": (TRAIN, "bf16: maybe", "train.bf16: got 'maybe', expected true or false or auto"),
    "an operator that is none": (
        EVOLUTION,
        "mutation_weights: {widen_fnn: 1}",
        ":12:32 evolution.mutation_weights.widen_fnn: ",
    ),
    "yarn without a factor": (
        "heads: 2",
        "heads: 2, rope: yarn",
        ":4:35 model.blocks[0].attn.rope: yarn extends rope_context by rope_factor, which is not given",
    ),
    "a window without a pattern": (
        "heads: 2",
        "heads: 2, sw: 64",
        ":4:35 model.blocks[0].attn.sliding_window: is 64, but there is no sparsity",
    ),
    "sequences with more places than are learned": (
        "dim: 16",
        "dim: 16, positions: 15",
        ":9:3 data.seq_len: is 16, but model.emb.positions is 15",
    ),
    "blocks without a pattern": ("heads: 2", "heads: 2, block_size: 8", "such as sparsity: block"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_can_be_known_is_told_before_anything_trains(what: str, place: Path) -> None:
    old, new, said = WRONG[what]
    assert said in told(place, (old, new))


def test_a_cap_that_leaves_a_rung_of_halving_less_than_a_step_is_told(place: Path) -> None:
    halving = ("rung1_tokens: 640, rung2_tokens: 640", "rungs: asha, min_tokens: 128, max_tokens: 384")
    said = "train.max_tokens: is 130, which leaves rung 2 2, less than one step of 64 tokens"
    assert said in told(place, halving, (TRAIN, "max_tokens: 130"))


def test_all_that_is_wrong_is_told_at_once(place: Path) -> None:
    message = told(
        place, (SOURCE, "source: gone"), (EVOLUTION, "rung0_thresholds: {params: 1}, objectives: {bpbb: min}")
    )
    assert [line.split(" ")[1].rstrip(":") for line in message.splitlines()] == [
        "data.shards[0].source",
        "evolution.rung0_thresholds",
        "evolution.objectives.bpbb",
    ]


def test_from_python_the_same_is_refused(place: Path) -> None:
    experiment = loads(TEXT.replace(SOURCE, "source: gone").replace("rung1_tokens: 640", "rung1_tokens: 0")).parse(
        Experiment
    )
    with pytest.raises(InputError, match=r"^data.shards\[0\].source: data source"):
        examined(located(experiment, place))


ATTENTION, FFN = "kind: MHA, heads: 2, head_dim: 8", "kind: dense, hidden: 32"
#: A knob that nothing reads -> (old text, new text, what is said of it)
UNREAD: dict[str, tuple[str, str, str]] = {
    "a window of no pattern": (
        ATTENTION,
        f"{ATTENTION}, sparsity: none, sw: 9",
        "attn.sliding_window: is 9, but has no",
    ),
    "a stride of another pattern": (
        ATTENTION,
        f"{ATTENTION}, sparsity: sliding, global_stride: 9",
        "attn.global_stride: is 9, but has no effect with sparsity 'sliding'",
    ),
    "a selector's size": (ATTENTION, f"{ATTENTION}, selector_topk: 9", "has no effect with selector 'none'"),
    "a base of no rotation": (ATTENTION, f"{ATTENTION}, rope: none, rope_theta: 9.0", "has no effect with rope 'none'"),
    "a gate's kind": (ATTENTION, f"{ATTENTION}, gating_op: diagonal", "has no effect with gating_pos 'none'"),
    "shared experts' size": (
        FFN,
        "kind: moe, hidden: 8, n_experts: 4, shared_hidden: 9",
        "ffn.shared_hidden: is 9, but has no effect with shared 0",
    ),
    "a capacity that drops nothing": (
        FFN,
        "kind: moe, hidden: 8, n_experts: 4, capacity_factor: 1.5",
        "ffn.capacity_factor: is 1.5, but has no effect with drop_policy 'none'",
    ),
    "an expert's window": (
        FFN,
        "kind: moe, hidden: 8, n_experts: 4, experts: [{kind: mamba2, dt_rank: 3}]",
        "ffn.experts[0].dt_rank: is 3, but has no effect with kind 'mamba2'",
    ),
    "a rate that another overrides": (TRAIN, "lr: 0.01, optimizer: {lr: 0.1}", "train.lr: is 0.01, but has no effect"),
    "a tournament's size": (EVOLUTION, "tournament_size: 4", "tournament_size: is 4, but has no effect with parent"),
    "a sample of cases": (EVOLUTION, "downsample: 0.25", "evolution.downsample: is 0.25, but has no effect"),
    "an archive": (EVOLUTION, "archive_max_elites: 9", "evolution.archive_max_elites: is 9, but has no effect"),
    "survivors of an archive": (
        EVOLUTION,
        "parent_selection: map_elites, topk_keep: 3",
        "evolution.topk_keep: is 3, but has no effect with parent_selection 'map_elites'",
    ),
    "halving": (EVOLUTION, "eta: 4", "evolution.eta: is 4, but has no effect with rungs 'fixed'"),
    "promotion": (EVOLUTION, "promotion_min_layers: 2", "evolution.promotion_min_layers: is 2, but has no effect"),
    "adaptation": (EVOLUTION, "adaptive_mutation_eta: 0.7", "evolution.adaptive_mutation_eta: is 0.7, but has no"),
    "screening without edits": (EVOLUTION, "mutation_steps: 0, screening: model", "no effect in the control without"),
    "repeats without edits": (
        EVOLUTION,
        "baseline: control, repeat: 2",
        "repeat: is 2, but has no effect in the control",
    ),
    "crossover of copies": (
        EVOLUTION,
        "mutation_steps: 0, crossover_prob: 0.5",
        "no effect in the control without edits",
    ),
    "a model of costs": (EVOLUTION, "objectives: {params: min}, screening: model", "which nobody has to predict"),
    "a model of what is made of costs": (
        EVOLUTION,
        "objectives: {a: min}, composite_metrics: {a: {op: product, of: [params, layers]}}, screening: model",
        "evolution.screening: is 'model', but has no effect where objectives and constraints are costs",
    ),
    "repeats of costs": (EVOLUTION, "objectives: {params: min}, repeat: 2", "repeat: is 2, but has no effect where"),
    "survival of walks": (EVOLUTION, "baseline: random, survival: nsga3", "has no effect with baseline 'random'"),
    "survivors without weights": (
        EVOLUTION,
        "weight_inheritance: scratch, survivors: rest",
        "survivors: is 'rest', but has no effect with weight_inheritance 'scratch'",
    ),
    "moments of nobody": (
        EVOLUTION,
        "weight_inheritance: scratch, inherit_optimizer: false",
        "inherit_optimizer: is false, but has no effect where nobody goes on",
    ),
    "templates that are switched off": (
        EVOLUTION,
        "template_mutation_prob: 0.5, mutation_weights: {template_mutation: 0}",
        "template_mutation_prob: is 0.5, but has no effect with mutation_weights.template_mutation 0",
    ),
    "a way to cross": (EVOLUTION, "crossover_prob: 0, crossover: uniform", "evolution.crossover: is {'uniform': 1.0}"),
    "gates that ask nothing": (EVOLUTION, "structural_gates: reject", "evolution.structural_gates: is 'reject', but"),
    "healing of no tokens": (
        "  shards",
        "  healing_shards: [{source: text.txt}]\n  shards",
        "data.healing_shards: have no",
    ),
    "a rung below a step": ("rung1_tokens: 640", "rung1_tokens: 9", "evolution.rung1_tokens: is 9, less than one step"),
    "a cap that cuts": (
        TRAIN,
        "max_tokens: 700",
        "train.max_tokens: is 700, which cuts the rungs short",
    ),
}


@pytest.mark.parametrize("what", UNREAD)
def test_what_has_no_effect_is_told_and_not_refused(what: str, place: Path) -> None:
    old, new, said = UNREAD[what]
    path = place / "f.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    notes = validated(str(path)).notes
    assert len(notes) == 1
    assert said in notes[0]
    assert notes[0].startswith(f"{path}:")


ANCHORED = "train: {lr: 0.01, anchoring: {%s}}"


@pytest.mark.parametrize(
    ("anchoring", "evolution", "said"),
    [
        ("rehearsal: {every: 5}", "", "train.anchoring.rehearsal.every: is 5, but has no effect with source 'data'"),
        ("rehearsal: {temperature: 0.5}", "", "train.anchoring.rehearsal.temperature: is 0.5, but has no effect"),
        (
            "rehearsal: {source: generations}",
            "scratch",
            "train.anchoring.rehearsal: samples before the first step alone",
        ),
        ("rehearsal: {source: generations, every: 5}", "scratch", ""),
        ("rehearsal: {source: generations}", "", ""),
        ("freeze_expand_tune: {}", "scratch", "train.anchoring.freeze_expand_tune: has no effect"),
        ("freeze_expand_tune: {}", "", ""),
        ("self_distillation: {}", "scratch", ""),
    ],
)
def test_means_against_forgetting_that_hold_on_to_nothing_are_told(
    anchoring: str, evolution: str, said: str, place: Path
) -> None:
    text = TEXT.replace("train: {lr: 0.01}", ANCHORED % anchoring)
    if evolution:
        text = text.replace("evolution: {", f"evolution: {{weight_inheritance: {evolution}, ")
    (place / "f.yaml").write_text(text)
    found = [
        f"{'.'.join(map(str, remark.loc))}: {remark.said}" for remark in knobs(read_experiment(str(place / "f.yaml")))
    ]
    assert said in "\n".join(found) if said else not any("anchoring" in line for line in found)


@pytest.mark.parametrize(
    ("anchoring", "said"),
    [
        ("rehearsal: {share: 1.5}", "train.anchoring.rehearsal.share"),
        ("rehearsal: {source: dreams}", "train.anchoring.rehearsal.source"),
        ("rehearsal: {sahre: 0.5}", "did you mean 'share'"),
        ("self_distillation: {decay: 1.0}", "train.anchoring.self_distillation.decay"),
        ("self_distillation: {direction: backward}", "train.anchoring.self_distillation.direction"),
        ("self_distillation: {weight: 0}", "train.anchoring.self_distillation.weight"),
        ("freeze_expand_tune: {freeze_steps: 0}", "train.anchoring.freeze_expand_tune.freeze_steps"),
        ("rehearse: {}", "did you mean 'rehearsal'"),
    ],
)
def test_means_against_forgetting_that_mean_nothing_are_refused(anchoring: str, said: str, place: Path) -> None:
    assert said in told(place, ("train: {lr: 0.01}", ANCHORED % anchoring))


def test_defaults_and_our_own_files_are_not_told_of(place: Path) -> None:
    for name in ("live_smoke.yaml", "live_phi_tiny.yaml", "live_phi_gpu.yaml"):
        experiment = read_experiment(ROOT / "configs" / name)
        resolved = Experiment.model_validate(experiment.model_dump(mode="json"))
        assert list(knobs(resolved)) == []
        assert list(knobs(loads(dumps(resolved)).parse(Experiment))) == []


READ = {"tournament_size": 5, "downsample": 0.25}


@pytest.mark.parametrize("rule", SELECTORS)
def test_what_a_rule_reads_is_not_told_to_have_no_effect(rule: str) -> None:
    """A rule that reads a setting is entered in `knobs`; one of another package may read any."""
    reads = set(re.findall(r"pool\.rules\.(\w+)", inspect.getsource(SELECTORS[rule])))
    evolution = Evolution.model_validate({"parent_selection": rule, **READ})
    assert reads - {"weights"} <= READ.keys()  # weights stand beside any rule
    assert {remark.loc[1] for remark in _of_search(evolution)} & READ.keys() == READ.keys() - reads
    other = evolution.model_copy(update={"parent_selection": "somebodys"})
    assert not {remark.loc[1] for remark in _of_search(other)} & READ.keys()


def test_what_evolution_leaves_without_effect_can_be_written_and_read() -> None:
    blocks = [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8, "sparsity": "none", "sliding_window": 128}}]
    blueprint = Blueprint.model_validate({"emb": {"dim": 16}, "blocks": blocks})
    text = dumps(blueprint)
    assert loads(text).parse(Blueprint) == blueprint
    again = Experiment.model_validate({"model": loads(text).plain()})
    assert [remark.refused for remark in knobs(again)] == [False]


def test_validate_tells_machines_and_people(place: Path, cli: Cli) -> None:
    good, bad = place / "good.yaml", place / "bad.yaml"
    good.write_text(TEXT.replace(EVOLUTION, "eta: 4"))
    bad.write_text(TEXT.replace(SOURCE, "source: gone"))
    code, out, err = cli("validate", good)
    assert (code, out) == (0, f"{good}  ok, 6,720 parameters\n")
    assert err.startswith(f"note: {good}:12:13 evolution.eta: is 4")
    code, out, _ = cli("validate", good, bad, "--json")
    told = json.loads(out)
    assert code == 2
    assert told[str(good)]["ok"] is True
    assert told[str(good)]["parameters"] == 6720
    assert len(told[str(good)]["notes"]) == 1
    assert told[str(bad)]["ok"] is False
    assert told[str(bad)]["mistakes"][0].startswith(f"{bad}:11:13 data.shards[0].source")


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("benchmarks/roots/*.yaml")]), ids=lambda path: path.name
)
def test_every_shipped_file_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphogen.foresight._memory_here", lambda: 2**38)  # some are for larger machines than this
    found = validated(str(path))
    assert found.said.startswith("ok, ")
    assert found.notes == ()
    assert ("templates, for evolution.templates" in found.said) == (path.parent.name == "templates")


def test_templates_are_no_experiment() -> None:
    with pytest.raises(InputError, match="a file of templates, expected an experiment"):
        read_experiment(ROOT / "configs" / "templates" / "mutations.yaml")


def test_a_tokenizer_of_the_hub_is_not_asked_for(place: Path) -> None:
    (place / "f.yaml").write_text(TEXT.replace("bytes", "nobody/nothing"))
    found = validated(str(place / "f.yaml"))
    assert found.parameters is None
    assert "a vocabulary whose size only the hub knows" in found.said
    (place / "t.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 99}}, "added_tokens": [{"id": 100}]}))
    (place / "f.yaml").write_text(TEXT.replace("bytes", "t.json"))
    assert validated(str(place / "f.yaml")).parameters == 6720 - (257 - 101) * 16
