"""Layers of other models run here as they do there, under a causal mask, and read no more than themselves."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from donor_models import ASKED, MODELS, REFUSED, N, own_logits, saved_model
from safetensors.torch import load_file, save_file
from tiny_models import GROUPED, ids
from torch import Tensor

from morphogen import foresight, reach
from morphogen.errors import InputError
from morphogen.experiment import Experiment
from morphogen.parts.foreign.donors import files
from morphogen.parts.foreign.donors.donor import Donor, digest, open_donor
from morphogen.parts.foreign.donors.files import Files
from morphogen.parts.foreign.donors.layers import ForeignLayer, LayerCache
from morphogen.parts.foreign.donors.opened import cost_of, kept_of
from morphogen.parts.foreign.donors.stems import DonorEmbedding, DonorHead
from morphogen.parts.foreign.donors.weights import Weights

QUICK = {"gpt2", "gemma3", "bert", "distilbert", "mamba"}
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
PROMPT = 7


class Whole:
    """All layers of a donor in order, behind its own embedding and before its own head."""

    def __init__(self, donor: Donor) -> None:
        self.embedding: DonorEmbedding = donor.embedding()
        self.layers: list[ForeignLayer] = [donor.layer(i) for i in range(donor.n_layers)]
        self.head: DonorHead = donor.head()

    @torch.no_grad()
    def __call__(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        caches: list[LayerCache] | None = None,
    ) -> Tensor:
        x_BTD = self.embedding(ids_BT, positions_BT, mask_BT)
        for i, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, positions_BT, mask_BT, caches[i] if caches else None)
        logits: Tensor = self.head(x_BTD)
        return logits


def count(handled: list[int], layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Counts the tokens that a layer is given."""
    handled[0] += next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)).shape[1]


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", EACH)
def test_layers_in_order_behind_their_own_embedding_and_head_are_the_model(name: str, tmp_path: Path) -> None:
    model = saved_model(name, tmp_path)
    donor = open_donor(str(tmp_path))
    whole, ids_BT = Whole(donor), ids(20)
    logits = whole(ids_BT)
    assert far(logits, own_logits(model, ids_BT)) <= 1e-4
    assert [layer.executed for layer in whole.layers] == [1] * donor.n_layers == [1] * N
    assert donor.bidirectional == type(model).__name__.endswith("ForMaskedLM")

    changed = ids_BT.clone()
    changed[:, -1] = 5 + (changed[:, -1] == 5)
    moved = whole(changed)
    assert far(moved[:, :-1], logits[:, :-1]) <= 1e-6
    assert far(moved[:, -1], logits[:, -1]) > 1e-3

    for padded in (slice(0, 6), slice(-6, None)):
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        mask_BT[0, padded] = False
        changed = ids_BT.masked_fill(~mask_BT, 5)
        assert far(whole(changed, None, mask_BT)[mask_BT], whole(ids_BT, None, mask_BT)[mask_BT]) <= 1e-5

    handled = [0]
    for layer in whole.layers:
        layer.layer.register_forward_pre_hook(partial(count, handled), with_kwargs=True)
    caches = [layer.new_cache() for layer in whole.layers]
    parts = [(0, PROMPT), (PROMPT, PROMPT + 3), *((t, t + 1) for t in range(PROMPT + 3, 20))]
    steps = [whole(ids_BT[:, a:b], torch.arange(a, b).expand(2, -1), None, caches) for a, b in parts]
    assert far(torch.cat(steps, dim=1), logits) <= 1e-5
    assert {cache.length for cache in caches} == {20}
    assert handled[0] == 20 * N  # each token once
    for layer in range(N):
        counted = cost_of(str(tmp_path), layer, 20)
        assert counted.flops > 0
        assert counted.kv_bytes + counted.state_bytes > 0
        assert 0 < kept_of(str(tmp_path), layer, 20, trained=False) <= kept_of(str(tmp_path), layer, 20, trained=True)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_learned_positions_end_and_layers_go_on(name: str, tmp_path: Path) -> None:
    goes_on(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "electra", "ernie", "data2vec-text", "distilbert", "opt"])
def test_learned_positions_of_others_end_and_layers_go_on(name: str, tmp_path: Path) -> None:
    goes_on(name, tmp_path)


def goes_on(name: str, folder: Path) -> None:
    """A layer of a model with 64 places runs on 70 tokens, the first of them as before; and is counted."""
    saved_model(name, folder)
    layer = open_donor(str(folder)).layer(1)
    x_BTD = torch.randn(1, 80, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = layer(x_BTD)
        assert far(whole[:, :20], layer(x_BTD[:, :20])) <= 1e-5
        cache = layer.new_cache()
        parts = [layer(x_BTD[:, a:b], cache=cache) for a, b in ((0, 60), (60, 79), (79, 80))]
        assert far(torch.cat(parts, dim=1), whole) <= 1e-4
    assert cost_of(str(folder), 1, 80).flops > cost_of(str(folder), 1, 20).flops


def test_tables_within_a_layer_end_with_it(tmp_path: Path) -> None:
    saved_model("gpt_neo", tmp_path)
    with pytest.raises(InputError, match="layer 0 cannot be run on 65 tokens: its model has places for 64"):
        open_donor(str(tmp_path)).layer(0)(torch.zeros(1, 65, 32))
    with pytest.raises(InputError, match="layer 0 cannot be run on 65 tokens"):
        cost_of(str(tmp_path), 0, 65)
    assert open_donor(str(tmp_path)).different() == [0]
    for tokens, said in ((64, ""), (65, "layer 0 cannot be run on 65 tokens")):
        evolution = {"donors": [str(tmp_path)]}
        block = {"ffn": {"kind": "dense", "hidden": 8}}
        model = {"emb": {"dim": 8, "vocab": 9}, "blocks": [block]}
        given = Experiment.model_validate({"model": model, "evolution": evolution, "data": {"seq_len": tokens}})
        remarks = [remark for remark in foresight._donors(given) if remark.loc == ("evolution", "donors", 0)]
        assert [said in remark.said for remark in remarks] == ([True] if said else [])


def test_experts_in_one_tensor_are_counted_as_each_token_chooses(tmp_path: Path) -> None:
    saved_model("mixtral", tmp_path)
    attention, expert, router = 2 * 32 * (32 + 16 + 16 + 32) + 4 * 32 * 10, 2 * 3 * 32 * 44, 2 * 32 * 4
    assert cost_of(str(tmp_path), 0, 10).flops == attention + 2 * expert + router


def test_what_was_asked_for_is_tried() -> None:
    kinds = {"gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"}
    kinds |= {"phi", "olmo2", "falcon", "falcon, alibi", "bert", "roberta", "distilbert", "mamba"}
    assert kinds <= set(ASKED)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in several files."""
    folder = tmp_path_factory.mktemp("llama")
    saved_model("llama", folder, max_shard_size="20kB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def test_a_layer_is_read_by_itself(llama: Path) -> None:
    donor = open_donor(str(llama))
    assert (donor.architecture, donor.dim, donor.n_layers, donor.vocab) == ("llama", 32, N, 300)
    assert donor.bytes_read == 0
    assert "layer.self_attn.q_proj.weight" in donor.shapes(2)
    tensors = donor.read(2)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == donor.shapes(2)
    of_layers = sum(t.nbytes for f in llama.glob("*.safetensors") for n, t in load_file(f).items() if ".layers." in n)
    assert donor.bytes_read == sum(tensor.nbytes for tensor in tensors.values()) == of_layers // N
    assert donor.checksum(2) == digest(tensors) != donor.checksum(1)


def test_two_of_many_layers_read_no_more_than_their_share(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**GROUPED | {"num_hidden_layers": 24})
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="60kB")
    donor = open_donor(str(tmp_path))
    stored = {n: t.nbytes for path in tmp_path.glob("*.safetensors") for n, t in load_file(path).items()}
    of_layers = sum(size for name, size in stored.items() if ".layers." in name)
    for layer in (5, 23):
        donor.read(layer)
    assert 0 < donor.bytes_read <= of_layers * 2 / 24
    donor.embedding()
    assert donor.bytes_read <= of_layers * 2 / 24 + stored["model.embed_tokens.weight"]


def test_a_layer_may_be_moved_copied_and_filled_later(llama: Path) -> None:
    donor, x_BTD = open_donor(str(llama)), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    filled, empty = donor.layer(1), donor.layer_module(1)
    assert {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()} == donor.shapes(1)
    assert empty(x_BTD.to("meta")).shape == x_BTD.shape
    later = deepcopy(empty).to_empty(device="cpu")
    later.load_state_dict(donor.read(1), strict=True)
    with torch.no_grad():
        want = filled(x_BTD)
        assert torch.equal(later(x_BTD), want)
        assert far(deepcopy(filled).to(torch.float64)(x_BTD.double()), want.double()) <= 1e-5
        assert far(deepcopy(filled).to(torch.bfloat16)(x_BTD.bfloat16()).float(), want) <= 0.1
        assert torch.equal(filled(x_BTD, torch.arange(9)), want)
        assert far(filled(x_BTD, torch.arange(9) * 2), want) > 1e-4
    x_BTD.requires_grad_()
    filled(x_BTD).square().sum().backward()
    assert x_BTD.grad is not None
    assert all(p.grad is not None and bool(p.grad.any()) for p in filled.parameters())


def edited(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy of a model with other fields in its config."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return to


def said(source: Path | str, layer: int = 0) -> str:
    """The message of what goes wrong."""
    with pytest.raises(InputError) as raised:
        open_donor(str(source)).read(layer)
    text = str(raised.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "architecture: got 'lama', expected one of"),
        ({"model_type": "lama", "auto_map": {"AutoModel": "x.Y"}}, "code that comes with a model is never run"),
        ({"model_type": None}, "has no model_type"),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"hidden_size": 64}, "self_attn.q_proj.weight has shape (32, 32), expected"),
        ({"model_type": ["llama"]}, "has no model_type"),
        ({"dtype": []}, "cannot be read"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected at least 1"),
        ({"vocab_size": -1}, "vocab_size is -1, expected at least 1"),
        ({"num_hidden_layers": "four"}, "cannot be read"),
        ({"num_attention_heads": 5}, "config.json"),
    ],
)
def test_a_config_that_does_not_fit_is_told(fields: dict[str, Any], message: str, llama: Path, tmp_path: Path) -> None:
    assert message in said(edited(llama, tmp_path, **fields))


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_whose_layers_need_more_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING

    fields, why = REFUSED[kind]
    CONFIG_MAPPING[kind](**fields).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    text = said(tmp_path)
    assert f"architecture {kind!r}" in text
    assert why in text


def test_layers_that_are_not_there_are_told(llama: Path, tmp_path: Path) -> None:
    for layer in (N, -1, 99):
        assert f"has no layer {layer}, expected 0 to {N - 1}" in said(llama, layer)
    folder = edited(llama, tmp_path, num_hidden_layers=N + 1)
    assert "has no weights of layer 4, expected one of 0, 1, 2, 3" in said(folder, N)


def test_files_that_are_not_whole_are_told(llama: Path, tmp_path: Path) -> None:
    folder = edited(llama, tmp_path)
    shard = next(
        path
        for path in sorted(folder.glob("*.safetensors"))
        if "layers.0.self_attn.q_proj" in str(load_file(path).keys())
    )
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert f"{shard}: not a whole safetensors file" in said(folder)
    shard.unlink()
    assert f"{shard}: no such file, but model.safetensors.index.json names it" in said(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    assert "has no weights, expected" in said(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert "has weights only as pickle (pytorch_model.bin), which is never loaded" in said(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in said(folder)
    (folder / "config.json").unlink()
    assert "config.json: no such file" in said(folder)
    assert "no such folder" in said(folder / "elsewhere")


def test_a_model_of_the_hub_is_fetched_file_by_file(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cache, revision = tmp_path / "hub", "0" * 40
    snapshot = cache / "models--owner--name" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(reach, "ANSWER_SECONDS", 0.5)
    for name in ("config.json", "model.safetensors.index.json"):
        (snapshot / name).write_bytes((llama / name).read_bytes())
    index = json.loads((llama / "model.safetensors.index.json").read_text())["weight_map"]
    for name in {file for tensor, file in index.items() if ".layers.1." in tensor}:
        (snapshot / name).write_bytes((llama / name).read_bytes())
    assert digest(open_donor("owner/name").read(1)) == open_donor(str(llama)).checksum(1)
    assert "owner/name/model-" in (text := said("owner/name", 3))
    assert "http://127.0.0.1:9 cannot be reached" in text
    assert "owner/other: no such folder, and not to be had from the hub: http://127.0.0.1:9" in said("owner/other")


def test_the_hub_is_asked_once_which_files_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def listed(model: str, revision: str) -> list[str]:
        asked.append(f"{model}@{revision}")
        return ["config.json", "pytorch_model.bin", "onnx/model.safetensors"]

    monkeypatch.setattr(huggingface_hub, "list_repo_files", listed)
    monkeypatch.setattr(files, "unreachable", lambda kind, model: None)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"has weights only as pickle \(pytorch_model.bin\), which is never loaded"
        ):
            Weights(Files(tmp_path, "owner/pickled"))
    assert asked == [f"owner/pickled@{tmp_path.name}"]
    monkeypatch.setattr(files, "unreachable", lambda kind, model: "no answer")
    with pytest.raises(InputError, match=r"owner/unheard/model.safetensors not to be had from the hub: no answer"):
        Weights(Files(tmp_path, "owner/unheard"))


def renamed(folder: Path, *pairs: tuple[str, str]) -> None:
    """Gives the tensors of a model other names, as checkpoints of older classes have them."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_names_of_older_checkpoints_are_known(tmp_path: Path) -> None:
    model = saved_model("bert", tmp_path)
    renamed(tmp_path, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    assert far(Whole(open_donor(str(tmp_path)))(ids(20)), own_logits(model, ids(20))) <= 1e-4
    renamed(tmp_path, ("bert.", ""), ("cls.", "other."))
    donor = open_donor(str(tmp_path))
    assert torch.equal(
        donor.read(0)["layer.output.LayerNorm.weight"], model.bert.encoder.layer[0].output.LayerNorm.weight
    )
    with pytest.raises(InputError, match=r"lacks \d tensors, the first of them cls\.predictions"):
        donor.head()


def test_a_language_model_within_another_model_is_found(llama: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    small = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlavaConfig(text_config=LlamaConfig.from_pretrained(llama), vision_config=small).save_pretrained(tmp_path)
    tensors = {n: t for path in llama.glob("*.safetensors") for n, t in load_file(path).items()}
    alone = open_donor(str(llama))
    for start in ("language_model.", "model.language_model."):
        within = {
            start + (name.removeprefix("model.") if "model." in start[1:6] else name): t for name, t in tensors.items()
        }
        within["vision_tower.encoder.layers.3.self_attn.q_proj.weight"] = torch.zeros(8, 8)  # not the layer looked for
        save_file(within, tmp_path / "model.safetensors", {"format": "pt"})
        donor = open_donor(str(tmp_path))
        assert donor.checksum(3) == alone.checksum(3)
        assert far(Whole(donor)(ids(9)), Whole(alone)(ids(9))) == 0.0
