"""Models of other frameworks come in with equal logits, or are refused with one message."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, ids, saved, write_tokenizer
from transformers import AutoModelForCausalLM

import morphogen as mg
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.fusion.importing import import_model, imported
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.network import Cache, assemble
from morphogen.parts.foreign.donors.files import Files
from morphogen.parts.foreign.donors.weights import Weights
from morphogen.reading import read_experiment
from tiny import write_corpus


@pytest.mark.parametrize("name", MODELS)
def test_an_imported_model_gives_its_logits(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path)
    blueprint, state = imported(str(tmp_path))
    ours = assemble(blueprint, state).eval()
    cache: Cache = {}
    with torch.no_grad():
        wanted = theirs(ids()).logits
        assert float((ours(ids()) - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
        chunks = [ours.extend(piece, cache) for piece in torch.split(ids(), [11, 1, 12], 1)]
    assert float((torch.cat(chunks, 1) - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_shards_are_read_and_only_what_is_asked_for(tmp_path: Path) -> None:
    theirs = saved("llama", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    weights = Weights(Files(tmp_path))
    assert weights["model.norm.weight"].shape == (32,)
    assert weights.bytes_read == 32 * 4
    blueprint, state = imported(str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(assemble(blueprint, state)(ids()), theirs(ids()).logits, atol=1e-5)


def test_half_precision_comes_in_as_it_is(tmp_path: Path) -> None:
    theirs = saved("qwen3", tmp_path).bfloat16()
    theirs.save_pretrained(tmp_path)
    _, state = imported(str(tmp_path))
    assert torch.equal(state["norm.weight"], theirs.model.norm.weight.float())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (float("nan"), "holds numbers that are not finite"),
        (float("inf"), "holds numbers that are not finite"),
        (torch.float8_e4m3fn, "is of torch.float8_e4m3fn, expected floating-point numbers"),
        (torch.int8, "is of torch.int8, expected floating-point numbers"),
    ],
)
def test_weights_that_are_no_numbers_to_train_on_are_refused_by_name(tmp_path: Path, number: Any, said: str) -> None:
    saved("llama", tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    if isinstance(number, float):
        tensors[name][3, 4] = number
    else:
        tensors[name] = tensors[name].to(number)
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"model.safetensors: {name} {said}"):
        import_model(str(tmp_path), tmp_path / "out.yaml", tokenizer="bytes")
    assert not (tmp_path / "out.yaml").exists()


def changed(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "lama"}, "architecture: got 'lama', .*did you mean 'llama'"),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": "olmo2"}, "'olmo2' cannot be said by a blueprint: its norms stand after"),
        ({"hidden_act": "tanhshrink"}, "hidden_act: got 'tanhshrink'"),
        ({"logit_scale": 0.5}, "logit_scale is 0.5, which cannot be honoured"),
        ({"pretraining_tp": 2}, "pretraining_tp is 2"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type.*got 'dynamic'",
        ),
        ({"num_attention_heads": 3, "head_dim": 8}, "config.json"),
        ({"num_hidden_layers": 0}, "blocks cannot be"),
        ({"num_hidden_layers": 3}, "lacks 9 tensors .* model.layers.2"),
        ({"num_hidden_layers": 1}, "has 9 tensors that no blueprint has, the first of them model.layers.1"),
        ({"intermediate_size": 40}, r"has shape \(44, 32\), expected \(40, 32\)"),
        ({"vocab_size": 299}, r"embed_tokens.weight has shape \(300, 32\)"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved("llama", tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(InputError, match=said) as raised:
        imported(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        *((name, {"sliding_window": 1}, "sliding_window is 1") for name in ("mistral", "phi3", "qwen2, sliding")),
        *((name, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
           "partial_rotary_factor is 0.5") for name in ("llama", "mistral", "qwen2", "gemma", "olmo", "starcoder2")),
        *((name, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5") for name in ("llama", "gemma")),
        ("llama", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ("llama", {"num_attention_heads": 0}, "config.json"),
        ("gpt_neox", {"num_attention_heads": 0}, "config.json"),
        ("gpt_neox", {"hidden_size": 0}, "config.json"),
        ("gpt2", {"n_head": 0}, "config.json"),
        ("mamba", {"rms_norm": False}, "rms_norm is False"),
    ],
)  # fmt: skip
def test_what_their_class_reads_otherwise_or_not_at_all_is_refused(
    name: str, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    saved(name, tmp_path)
    changed(tmp_path, **fields)
    with pytest.raises(InputError, match=said):
        imported(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "fields", "tensor"),
    [
        ("mamba", {"d_inner": 64, "d_model": 32, "n_layer": 2, "ssm_cfg": {}, "fused_add_norm": True, "rms_norm": True,
                   "pad_vocab_size_multiple": 8}, None),
        ("gpt_neox", {}, "gpt_neox.layers.0.attention.bias"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, None),
    ],
)  # fmt: skip
def test_what_published_folders_say_besides_is_no_hindrance(
    name: str, fields: dict[str, Any], tensor: str | None, tmp_path: Path
) -> None:
    saved(name, tmp_path)
    changed(tmp_path, **fields)
    if tensor is not None:
        path = tmp_path / "model.safetensors"
        save_file({**load_file(path), tensor: torch.ones(4)}, path, {"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    blueprint, state = imported(str(tmp_path))
    with torch.no_grad():
        assert torch.allclose(assemble(blueprint, state).eval()(ids()), theirs(ids()).logits, atol=1e-5)


def test_damaged_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"not a whole safetensors file"):
        imported(str(tmp_path))
    shard.unlink()
    with pytest.raises(InputError, match=r"no such file, but .*index.json names it"):
        imported(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../x.safetensors"}}))
    with pytest.raises(InputError, match=r"expected one of the same folder"):
        imported(str(tmp_path))
    for path in (index, *tmp_path.glob("*.safetensors")):
        path.unlink()
    with pytest.raises(InputError, match=r"has no weights"):
        imported(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match=r"only as pickle \(pytorch_model.bin\)"):
        imported(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: not JSON"):
        imported(str(tmp_path))
    with pytest.raises(InputError, match=r"no such folder"):
        imported(str(tmp_path / "elsewhere"))


def test_an_import_writes_an_experiment_that_begins_with_the_weights(tmp_path: Path) -> None:
    folder, out = tmp_path / "gpt2", tmp_path / "root.yaml"
    theirs = saved("gpt2", folder)
    with pytest.raises(InputError, match=r"has no tokenizer"):
        import_model(str(folder), out)
    for odd in (tmp_path / "root.safetensors", tmp_path):
        with pytest.raises(InputError, match=r"expected the name of a file that ends in .yaml"):
            import_model(str(folder), odd, force=True)
    write_tokenizer(folder)
    found = import_model(str(folder), out)
    assert "resid_pdrop" in found.notes[0]
    experiment = read_experiment(str(out))
    assert experiment.data.tokenizer == str(folder)
    assert experiment.data.seq_len == experiment.model.emb.positions == 64
    state, blueprint, metadata = load_checkpoint(tmp_path / "root.safetensors")
    assert blueprint == experiment.model
    assert metadata["tokenizer"]
    with torch.no_grad():
        assert torch.allclose(assemble(blueprint, state).eval()(ids()), theirs(ids()).logits, atol=1e-5)
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"root.yaml: is there already; --force"):
        import_model(str(folder), out)
    import_model(str(folder), out, force=True)
    assert out.read_bytes() == before


@pytest.mark.slow
def test_a_short_sweep_from_an_imported_root_ends_with_a_frontier(tmp_path: Path) -> None:
    saved("llama", tmp_path / "llama")
    write_tokenizer(tmp_path / "llama")
    import_model(str(tmp_path / "llama"), tmp_path / "root.yaml")
    write_corpus(tmp_path / "corpus", documents=100)
    whole = read_experiment(str(tmp_path / "root.yaml"))
    small = {"shards": [{"source": str(tmp_path / "corpus")}], "seq_len": 16, "batch_size": 2, "eval_tokens": 128}
    data = {**whole.data.model_dump(mode="json"), **small}
    evolution = {**whole.evolution.model_dump(mode="json"), "rung1_tokens": 64, "rung2_tokens": 64}
    evolution |= {"generations": 1, "population": 2}
    changed = {"data": data, "evolution": evolution}
    experiment = Experiment.model_validate({**whole.model_dump(mode="json"), **changed})
    run = mg.evolve(experiment, out=tmp_path / "run")
    assert run.frontier.candidates
    root = run.lineage.nodes[0]
    assert root.status == "trained"
    first = run.frontier.candidates[0]
    assert first.inheritance is not None
    assert first.inheritance.inherited > 0
    assert first.tokens.lineage >= first.tokens.own > 0
