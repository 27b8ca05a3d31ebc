"""YAML: what is read, how each mistake is told, and the layout of the file that a text came from."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from morphogen.blueprint.bounded import MOST_BYTES
from morphogen.blueprint.mistakes import MOST_LINES
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps, loads, read
from morphogen.errors import InputError
from morphogen.experiment import Experiment

TEXT = """\
# what it is for
model:
  norm: layernorm      # as the peer's
  emb: {dim: 16}
  blocks:
    - attn: {type: MHA, heads: 2, head_dim: 8, sparsity: sliding, sw: 9}   # near
      ffn: {kind: dense, hidden: 16}
train: {lr: 0.01}      # high
"""

SHARED = """\
model:
  emb: {dim: 16}
  blocks:
    - &plain
      attn: &heads {kind: MHA, heads: 2, head_dim: 8}   # once
      ffn: &wide {kind: dense, hidden: 16}
    - *plain
    - attn: *heads
      ffn: {<<: *wide, hidden: 24}
    - <<: *plain
      parallel: true
"""


def with_hidden(experiment: Experiment, at: int, hidden: int) -> Experiment:
    """The experiment with another feed-forward layer in one block."""
    data: dict[str, Any] = experiment.model_dump(mode="json")
    data["model"]["blocks"][at]["ffn"]["hidden"] = hidden
    return Experiment.model_validate(data)


def test_comments_and_order_survive_loading_and_saving() -> None:
    document = loads(TEXT)
    experiment = with_hidden(document.parse(Experiment), 0, 40)
    text = dumps(experiment, like=document)
    assert loads(text).parse(Experiment) == experiment
    for comment in ("# what it is for", "# as the peer's", "# near", "# high"):
        assert comment in text
    assert text.index("norm:") < text.index("emb:") < text.index("train:")
    assert "hidden: 40" in text


def test_what_an_alias_repeats_is_saved_place_by_place() -> None:
    for at in range(4):
        document = loads(SHARED)
        experiment = with_hidden(document.parse(Experiment), at, 40)
        text = dumps(experiment, like=document)
        assert loads(text).parse(Experiment) == experiment
        assert [block.id for block in experiment.model.blocks] == ["b0", "b1", "b2", "b3"]
        assert "# once" in text


def test_a_blueprint_alone_has_no_layout_to_keep() -> None:
    blueprint = loads(TEXT).parse(Experiment).model
    assert loads(dumps(blueprint)).parse(Blueprint) == blueprint


def test_what_has_not_changed_is_the_very_text() -> None:
    text = TEXT.replace("dim: 16", 'dim: "16", vocab: null').replace("lr: 0.01", "lr: 0.01, bf16: yes, clip: null")
    document = loads(text)
    assert dumps(document.parse(Experiment), like=document) == text
    changed = dumps(with_hidden(document.parse(Experiment), 0, 40), like=document)
    assert changed == text.replace("hidden: 16", "hidden: 40")


def test_a_field_written_by_another_name_keeps_it() -> None:
    document = loads(TEXT)
    data: dict[str, Any] = document.parse(Experiment).model_dump(mode="json")
    data["model"]["blocks"][0]["attn"] |= {"sliding_window": 12, "kind": "MQA", "kv_groups": 2}
    text = dumps(Experiment.model_validate(data), like=document)
    assert "{type: MQA, heads: 2, head_dim: 8, sparsity: sliding, sw: 12, kv_groups: 2} # near" in text
    assert loads(text).parse(Experiment) == Experiment.model_validate(data)


PLAIN = """\
model:
  emb: {dim: 16}
  blocks:
    - attn: {kind: MHA, heads: 2, head_dim: 8}
      ffn: {kind: dense, hidden: 32}
train: {lr: 0.01}
data: {seq_len: 32}
evolution: {population: 3}
"""

NULLS = """\
model:
  name: ~
  emb: {dim: 16, vocab: ~, dropout: null}
  norm:
  blocks:
    - id: ~
      attn: {kind: MHA, heads: 2, head_dim: 8, kv_groups: ~, rope: ~, sparsity: ~, sw: ~, kv_policy: {kind: ~}}
      ssm: ~
      extras: ~
      ffn: {kind: dense, hidden: 32, activation: ~, dropout: ~}
  recurrences: ~
  head: {tie_embeddings: ~}
train: {lr: 0.01, init_checkpoint: ~, optimizer: {name: ~, betas: ~, eps: ~}}
data: {seq_len: 32, tokenizer: ~, split: ~, shards: [{source: stdlib-code, weight: ~}], healing_tokens: ~}
evolution:
  population: 3
  objectives: ~
  templates: ~
  crossover: ~
  mutation_steps: ~
  composite_metrics: ~
  rung0_thresholds: {params: ~}
  mutation_weights: {widen_ffn: ~}
  map_elites: {bpb: {scale: ~, width: ~}}
"""


def test_null_is_the_default_everywhere() -> None:
    plain = loads(PLAIN).parse(Experiment)
    nulls = loads(NULLS).parse(Experiment)
    assert nulls.evolution.map_elites["bpb"].width == 1.5
    evolution = nulls.evolution.model_copy(update={"map_elites": plain.evolution.map_elites})
    assert nulls.model_copy(update={"evolution": evolution}) == plain
    assert "objectives" not in nulls.evolution.model_fields_set
    without = PLAIN.partition("train:")[0]
    assert loads(f"{without}train: ~\ndata:\nevolution: null\n").parse(Experiment) == loads(without).parse(Experiment)


def test_null_where_something_is_needed_is_missing() -> None:
    with pytest.raises(InputError, match=r"<text>:4:25 model.blocks\[0\].attn.heads: required field is missing"):
        loads(PLAIN.replace("heads: 2", "heads: ~")).parse(Experiment)
    with pytest.raises(InputError, match=r"<text>:4:7 model.blocks\[0\]: got null, expected a mapping"):
        loads(PLAIN.replace("    - attn", "    - ~\n    - attn")).parse(Experiment)


def test_a_template_sets_null_all_the_same() -> None:
    action = "{operator: insert_ssm, target: any, set: {dt_rank: null}}"
    text = PLAIN.replace("population: 3", f"templates: [{{name: a, weight: ~, actions: [{action}]}}]")
    templates = loads(text).parse(Experiment).evolution.templates
    assert not isinstance(templates, str)
    assert templates[0].actions[0].set == {"dt_rank": None}


def nested(levels: int, item: str) -> str:
    """Lists of lists in which an alias of the last stands ten times."""
    lines = [f"a0: &a0 {item}"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


#: What a file holds -> (the file, what is said of it). `@` is the place in front of it, without the file.
READ: dict[str, tuple[str, str]] = {
    "an alias bomb": (nested(10, "[x, x]"), "more than 30,000 values"),
    "an alias within itself": (f"x: &a [*a]\n{PLAIN}", ":1:8: the alias *a stands within what it repeats"),
    "a merge of itself": ("train: &t\n  <<: *t\n", ":2:7: the alias *t stands within what it repeats"),
    "lists without end": ("[" * 100_000, ":1:51: nested deeper than 50 levels"),
    "mappings without end": ("{a: " * 100_000, ":1:198: nested deeper than 50 levels"),
    "items without end": ("- " * 100_000, ":1:101: nested deeper than 50 levels"),
    "keys without end": ("\n".join(" " * i + "a:" for i in range(300)), ":50:50: nested deeper than 50 levels"),
    "too many values": ("x: [" + "1, " * 40_000 + "1]", "more than 30,000 values"),
    "a second document": (f"{PLAIN}---\n{PLAIN}", ":9:1: not valid YAML: a second document begins here"),
    "a key twice": ("train: {lr: 1, lr: 2}\n", ':1:16: not valid YAML: found duplicate key "lr"'),
    "a tab": ("model:\n\temb: 1\n", ":2:1: not valid YAML: found character '\\t'"),
    "an unknown alias": ("model: *x\n", ":1:8: not valid YAML: found undefined alias 'x'"),
    "a merge of a number": ("train: {<<: 5}\n", ":1:13: not valid YAML: expected a mapping or list of mappings"),
    "a Python object": ("model: !!python/object/apply:os.system [ls]\n", ":1:8: the tag !!python/object/apply:os"),
    "an ordered mapping": ("!!omap\n- model: 1\n", ":1:1: the tag !!omap has no meaning here"),
    "a set": ("model: !!set {a, b}\n", ":1:8: the tag !!set has no meaning here"),
    "binary data": ("model: !!binary aGVsbG8=\n", ":1:8: the tag !!binary has no meaning here"),
    "a tag of one's own": ("model: !foo {a: 1}\n", ":1:8: the tag !foo has no meaning here"),
    "a NUL": ("model: \0\n", ":1:8: not valid YAML: the character U+0000"),
    "a bell": ("# fine\nmodel: \a\n", ":2:8: not valid YAML: the character U+0007"),
    "a version to come": ("%YAML 3.0\n---\nmodel: 1\n", ":1:1: not valid YAML: found incompatible YAML document"),
    "a list as a key": ("? [a, b]\n: 1\n", ":1:3: a key that is a list or a mapping, expected a name"),
    "a mapping as a key": ("? {a: [b]}\n: 1\n", ":1:3: a key that is a list or a mapping, expected a name"),
    "a number as a key": (f"1: 2\n{PLAIN}", ":1:1 file: got the key 1, expected a name"),
    "true as a key": (PLAIN.replace("lr: 0.01", "true: 1"), ":6:1 train: got the key true, expected a name"),
    "null as a key": (f"~: 2\n{PLAIN}", ":1:1 file: got the key null, expected a name"),
    "5,000 digits": (PLAIN.replace("16", "9" * 5000), ":2:9 model.emb.dim: got '9999"),
    "30 digits": (PLAIN.replace("16", "9" * 30), ":2:9 model.emb.dim: got 9999"),
    "infinity": (PLAIN.replace("0.01", ".inf"), ":6:9 train.lr: got inf, expected a finite number"),
    "no number": (PLAIN.replace("0.01", ".nan"), ":6:9 train.lr: got nan, expected a finite number"),
    "beyond all numbers": (PLAIN.replace("hidden: 32", "hidden: 1e999"), ":5:26 model.blocks[0].ffn.hidden: got inf"),
    "infinity in a weight": (
        PLAIN.replace("population: 3", "composite_metrics: {a: {op: weighted_sum, of: {bpb: .inf}}}"),
        ":8:60 evolution.composite_metrics.a.of.bpb: got inf, expected a finite number",
    ),
    "true for a number": (PLAIN.replace("16", "true"), ":2:9 model.emb.dim: got true, expected a number"),
    "true in a list": (
        PLAIN.replace("population: 3", "mutation_steps: [true, 2]"),
        ":8:30 evolution.mutation_steps[0]: got true, expected a number",
    ),
    "a number for true": (
        PLAIN.replace("lr: 0.01", "bf16: 1"),
        ":6:9 train.bf16: got 1, expected true or false",
    ),
    "a factor for true": (
        PLAIN.replace("ffn: {", "ssm: {kind: mamba2, gate: 1.0}\n      ffn: {"),
        ":5:27 model.blocks[0].ssm.gate: got 1.0, expected true or false",
    ),
    "half a number": (PLAIN.replace("16", "8.5"), ":2:9 model.emb.dim: got 8.5, expected a whole number"),
    "a date for a number": (PLAIN.replace("16", "2024-01-01"), "model.emb.dim: got '2024-01-01', expected a whole"),
    "a scalar for a mapping": (PLAIN.replace("{dim: 16}", "5"), ":2:3 model.emb: got 5, expected a mapping"),
    "a scalar for a list": (PLAIN + "x: 1\n", ":9:1 x: unknown field"),
    "an item too few": (
        PLAIN.replace("lr: 0.01", "optimizer: {betas: [0.9]}"),
        ":6:21 train.optimizer.betas[1]: required item is missing",
    ),
    "an item too many": (
        PLAIN.replace("lr: 0.01", "optimizer: {betas: [0.9, 0.9, 0.9]}"),
        ":6:21 train.optimizer.betas: got 3 items, expected at most 2",
    ),
    "a name twice": (
        PLAIN.replace("head_dim: 8", "head_dim: 8, sw: 4, sliding_window: 4"),
        "model.blocks[0].attn.sw: another name of 'sliding_window', which is set too",
    ),
    "a kind twice": (PLAIN.replace("kind: dense", "kind: dense, type: dense"), "ffn.type: another name of 'kind'"),
    "a wrong type": (PLAIN.replace("kind: dense", "type: dens"), ":5:13 model.blocks[0].ffn.kind: got 'dens'"),
    "the older optimizer": (
        f"optimizer: {{name: lion}}\n{PLAIN}",
        ":1:1 optimizer: unknown field here; it is understood as train.optimizer",
    ),
    "a section's field in another": (
        PLAIN.replace("lr: 0.01", "population: 3"),
        ":6:9 train.population: unknown field here; it is understood as evolution.population",
    ),
    "the older share of survivors": (
        PLAIN.replace("population: 3", "topk_keep: 1.0"),
        ":8:13 evolution.topk_keep: got 1.0: a share, but this is a count",
    ),
    "a threshold that is nothing": (
        PLAIN.replace("population: 3", "rung0_thresholds: {params: {mn: 3}}"),
        ":8:41 evolution.rung0_thresholds.params.mn: unknown field, did you mean 'min'?",
    ),
    "a threshold in words": (
        PLAIN.replace("population: 3", "rung0_thresholds: {params: big}"),
        ":8:32 evolution.rung0_thresholds.params: got 'big', expected a number",
    ),
    "an unknown way to compose": (
        PLAIN.replace("population: 3", "composite_metrics: {a: {op: ratoi, of: [a, b]}}"),
        ":8:37 evolution.composite_metrics.a.op: got 'ratoi', expected one of product, ratio, weighted_sum",
    ),
    "an unknown way to cross": (
        PLAIN.replace("population: 3", "crossover: {foo: 1}"),
        ":8:25 evolution.crossover.foo: got 'foo', expected one of one_point, aligned_span, uniform",
    ),
    "a cached policy of no kind": (
        PLAIN.replace("head_dim: 8", "head_dim: 8, kv_policy: {kind: windw}"),
        "model.blocks[0].attn.kv_policy.kind: got 'windw', expected one of full, window, latent; did you mean",
    ),
    "a field of an expert": (
        PLAIN.replace(
            "kind: dense, hidden: 32", "kind: moe, hidden: 8, n_experts: 2, experts: [{kind: dense, hiden: 3}]"
        ),
        "model.blocks[0].ffn.experts[0].hiden: unknown field, did you mean 'hidden'?",
    ),
    "edits without end": (PLAIN.replace("population: 3", "mutation_steps: 5000"), "mutation_steps: got 5000, expected"),
    "offspring without end": (PLAIN.replace("population: 3", "population: 1000000000"), "population: got 1000000000"),
    "a run without end": (PLAIN.replace("population: 3", "generations: 1000000000"), "generations: got 1000000000"),
    "a template without end": (
        PLAIN.replace("population: 3", "templates: [{name: a, actions: [" + "{operator: widen_ffn}, " * 300 + "]}]"),
        "evolution.templates[0].actions: got 300 items, expected at most 32",
    ),
}


@pytest.mark.parametrize("what", READ)
def test_each_mistake_is_told_with_its_place_and_at_once(what: str) -> None:
    text, said = READ[what]
    began = time.process_time()
    with pytest.raises(InputError) as error:
        loads(text, "f.yaml").parse(Experiment)
    message = str(error.value)
    assert said in message
    assert all(line.startswith("f.yaml:") for line in message.splitlines())
    assert not any(inside in message for inside in ("function-", "kind=", "type=", "constrained", "Bounds"))
    assert len(message) < 600
    assert time.process_time() - began < 10.0  # most take milliseconds


def test_a_mistake_in_a_merge_or_an_alias_is_told_once_with_its_place() -> None:
    text = PLAIN.replace("{kind: MHA, heads: 2, head_dim: 8}", "&a {kind: MHA, heads: 2, head_dim: 8, spasity: none}")
    text = text.replace("train:", "    - attn: {<<: *a, heads: 4}\n    - attn: *a\ntrain:")
    with pytest.raises(InputError) as error:
        loads(text, "f.yaml").parse(Experiment)
    assert str(error.value) == "f.yaml:4:51 model.blocks[0].attn.spasity: unknown field, did you mean 'sparsity'?"
    with pytest.raises(InputError, match=r"^f.yaml:1:13 data.seq_len: got 2, expected greater than or equal to 8$"):
        loads(
            PLAIN.replace("data: {seq_len: 32}", "").replace("model:", "data: {<<: {seq_len: 2}}\nmodel:", 1), "f.yaml"
        ).parse(Experiment)
    with pytest.raises(
        InputError, match=r"^f.yaml:2:9 train.lr: got 'x', expected a number or auto\nf.yaml:2:18 train.clip"
    ):
        loads("train:\n  <<: [{lr: x}, {clip: y}]\n" + PLAIN.replace("train: {lr: 0.01}\n", ""), "f.yaml").parse(
            Experiment
        )


def test_numbers_are_read_as_they_are_meant() -> None:
    text = PLAIN.replace("dim: 16", 'dim: "16"').replace("heads: 2", "heads: 2.0").replace("0.01", "1e-2")
    assert loads(text).parse(Experiment) == loads(PLAIN).parse(Experiment)
    dated = loads(PLAIN.replace("emb:", "name: 2024-01-01\n  emb:")).parse(Experiment)
    assert dated.model.name == "2024-01-01"
    named = loads(PLAIN.replace("emb:", "name: !!str 5\n  emb:")).parse(Experiment)
    assert named.model.name == "5"


def test_a_hint_is_given_only_where_a_name_is_near() -> None:
    with pytest.raises(InputError, match=r"train.zzz: unknown field$"):
        loads(PLAIN.replace("lr: 0.01", "zzz: 1")).parse(Experiment)
    with pytest.raises(InputError, match=r"expected one of [A-Z, a-z]+$"):
        loads(PLAIN.replace("kind: MHA", "kind: banana")).parse(Experiment)


def test_of_many_mistakes_the_first_are_told() -> None:
    with pytest.raises(InputError) as error:
        loads(PLAIN.replace("lr: 0.01", ", ".join(f"x{i}: 1" for i in range(500)))).parse(Experiment)
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == f"... and {500 - MOST_LINES} more"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (PLAIN.encode("utf-16"), ":1:1: UTF-16 text, expected UTF-8"),
        (PLAIN.encode("utf-16-be"), ":1:1: not valid YAML: the character U+0000"),
        (b"a: 1\nb: \xff\n", ":2:4: not UTF-8 text: the byte 0xff"),
        (b"#" * (MOST_BYTES + 1), ": more than 1,048,576 bytes"),
    ],
)
def test_a_file_in_another_encoding_or_without_end(raw: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{said}")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(PLAIN, encoding="utf-8-sig")
    assert read(path).parse(Experiment) == loads(PLAIN).parse(Experiment)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match="is a pipe or a device, expected a file"):
        read(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match="is a pipe or a device, expected a file"):
        read("/dev/zero")
    with pytest.raises(InputError, match="is a folder, expected a file"):
        read(tmp_path)
    with pytest.raises(InputError, match=r"got 'a\\x00b.yaml', expected a path"):
        read("a\0b.yaml")
