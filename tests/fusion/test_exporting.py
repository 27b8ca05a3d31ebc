"""What is exported is loaded by transformers' Auto classes and gives the same logits and tokens, with a cache."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_models import MODELS, ids, saved, write_tokenizer
from torch import Tensor

from foreign_models import VOCAB, llama
from foreign_models import blueprint as foreign_blueprint
from morphogen.beside import TEXT
from morphogen.blueprint.schema import Block, Blueprint
from morphogen.data.prepare import tokenizer_of
from morphogen.data.tokenizers import ByteTokenizer, PieceTokenizer, Tokenizer, named, train_bpe
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError, RunError
from morphogen.experiment import Data
from morphogen.fusion.exporting import export_model, model_files
from morphogen.fusion.importing import imported
from morphogen.inherit.checkpoint import save_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.network import assemble, initial_state
from morphogen.testing.models import stirred
from plugins import installed
from strategies import blueprints

#: Loads a folder that this process has never seen; prints its class and what it generates.
USES = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, prompt, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids = torch.tensor(prompt)
with torch.no_grad():
    torch.save(model(ids).logits, folder + "/../logits.pt")
    done = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
text = AutoTokenizer.from_pretrained(folder)
print(json.dumps([type(model).__name__, done.tolist(), text("größer than 1 </s>")["input_ids"]]))
"""


def written(folder: Path, blueprint: Blueprint, state: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in model_files(blueprint, state).items():
        (folder / name).write_bytes(data)


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, local_files_only=True).eval()


def assert_same(theirs: Any, blueprint: Blueprint, state: Mapping[str, Tensor], vocab: int, tokens: int) -> None:
    """Logits, and so many greedy tokens by each side's own cache."""
    ours = assemble(blueprint, state).eval()
    prompt_BT = torch.randint(vocab, (2, 7), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted, got = ours(prompt_BT), theirs(prompt_BT).logits
        assert float((wanted - got).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))
        done = theirs.generate(prompt_BT, max_new_tokens=tokens, do_sample=False, eos_token_id=None)
    assert torch.equal(done, ours.generate(prompt_BT, tokens, temperature=0.0))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_came_in_goes_out_in_its_own_class(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path / "in")
    blueprint, state = imported(str(tmp_path / "in"))
    written(tmp_path / "out", blueprint, state)
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["model_type"]
    # a plain one of these is a Llama in all but name
    assert kind == {"phi3": "mistral"}.get(MODELS[name][0], MODELS[name][0]) or name == "qwen2"
    with torch.no_grad():
        wanted, got = theirs(ids()).logits, loaded(tmp_path / "out")(ids()).logits
    assert float((wanted - got).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


HYBRID = {
    "emb": {"dim": 16, "vocab": 257},
    "blocks": [
        {
            "attn": {"kind": "GQA", "heads": 4, "head_dim": 4, "kv_groups": 2, "sparsity": "sliding", "sw": 5},
            "ffn": {"kind": "moe", "hidden": 12, "n_experts": 4, "k": 2},
        },
        {"ssm": {"kind": "mamba2", "head_dim": 8}, "extras": [{"kind": "short_conv"}]},
    ],
}


def checkpoint(folder: Path, blueprint: Blueprint, tokenizer: Tokenizer, name: str, definition: str = "") -> Path:
    path = folder / "it.safetensors"
    provenance = Provenance(tokenizer.digest, name, Vocabulary(tokenizer.pieces, tokenizer.eot).pack())
    save_checkpoint(path, initial_state(blueprint, 0), blueprint, {**provenance.to_metadata(), TEXT: definition})
    return path


Used = tuple[str, list[list[int]], list[int]]


def in_a_fresh_process(folder: Path, prompt: list[list[int]], tokens: int) -> Used:
    code = [sys.executable, "-c", USES, str(folder), json.dumps(prompt), str(tokens)]
    done = subprocess.run(code, capture_output=True, text=True, check=False, env={**ENVIRONMENT, **offline(folder)})
    assert done.returncode == 0, done.stderr
    return used(done.stdout)


def here(folder: Path, prompt: list[list[int]], tokens: int) -> Used:
    """The same in this process, which has all that it imports."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", ["-c", str(folder), json.dumps(prompt), str(tokens)])
        exec(USES, {})
    return used(said.getvalue())


def used(said: str) -> Used:
    found = json.loads(said[said.index('["') :].splitlines()[0])  # a question may stand before it
    return found[0], found[1], found[2]


def offline(folder: Path) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "home"), "OMP_NUM_THREADS": "1"}


ENVIRONMENT = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}


LLAMA = {
    "emb": {"dim": 16, "vocab": 257},
    "blocks": [{"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 24}}],
}
QWEN = {
    **LLAMA,
    "blocks": [
        {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8, "bias": "qkv"}, "ffn": {"kind": "dense", "hidden": 9}}
    ],
}


@pytest.mark.parametrize(("data", "kinds"), [(LLAMA, {"llama"}), (QWEN, {"qwen2", "morphogen"})])
def test_the_tokenizer_of_a_native_class_gives_the_same_ids(data: Any, kinds: set[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = checkpoint(tmp_path, Blueprint.model_validate(data), ByteTokenizer(), "bytes")
    found = export_model(str(path), tmp_path / "out")
    assert found.architecture in kinds
    text = "größer than 1 </s>"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == list(text.encode())


def test_special_tokens_that_look_like_text_do_not_keep_a_model_from_its_own_class(tmp_path: Path) -> None:
    (tmp_path / "their").mkdir()
    write_tokenizer(tmp_path / "their")
    blueprint = Blueprint.model_validate({**LLAMA, "emb": {"dim": 16, "vocab": 300}})
    path = checkpoint(tmp_path, blueprint, named(str(tmp_path / "their")), str(tmp_path / "their"))
    assert export_model(str(path), tmp_path / "out").architecture == "llama"


@pytest.mark.parametrize("use", [here, pytest.param(in_a_fresh_process, marks=pytest.mark.slow)])
def test_a_hybrid_is_loaded_by_the_class_in_its_folder(use: Callable[..., Used], tmp_path: Path) -> None:
    blueprint = Blueprint.model_validate(HYBRID)
    path = checkpoint(tmp_path, blueprint, ByteTokenizer(), "bytes")
    found = export_model(str(path), tmp_path / "out")
    assert found.architecture == "morphogen"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "package `morphogen` installed" in card
    prompt = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(3))
    name, done, text = use(tmp_path / "out", prompt.tolist(), 40)
    assert name == "MorphogenForCausalLM"
    assert text == list("größer than 1 </s>".encode())
    ours = assemble(blueprint, initial_state(blueprint, 0)).eval()
    with torch.no_grad():
        assert float((ours(prompt) - torch.load(tmp_path / "logits.pt")).abs().max()) <= 1e-5
    assert done == ours.generate(prompt, 40, temperature=0.0).tolist()


def test_beams_and_the_loss_of_the_class_in_the_folder(tmp_path: Path) -> None:
    blueprint = Blueprint.model_validate(HYBRID)
    state = stirred(blueprint, dtype=torch.float32)
    written(tmp_path / "out", blueprint, state)
    theirs, prompt = loaded(tmp_path / "out"), torch.randint(256, (2, 9))
    assert_same(theirs, blueprint, state, 256, 20)
    with torch.no_grad():
        beams = theirs.generate(prompt, max_new_tokens=8, num_beams=3, eos_token_id=None)
        plain = theirs.generate(prompt, max_new_tokens=8, num_beams=3, use_cache=False, eos_token_id=None)
        assert torch.equal(beams, plain)
        logits = assemble(blueprint, state).eval()(prompt)
        wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), prompt[:, 1:].flatten())
        assert torch.allclose(theirs(prompt, labels=prompt).loss, wanted)
    asked = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "max_new_tokens": 8}
    assert torch.equal(theirs.generate(**asked, num_beams=3, eos_token_id=None), beams)
    right, left = torch.ones_like(prompt), torch.ones_like(prompt)
    right[0, -2:] = left[0, 0] = 0
    assert torch.equal(theirs(prompt, attention_mask=right).logits[0, :-2], theirs(prompt).logits[0, :-2])
    with pytest.raises(ValueError, match="padding before tokens"):
        theirs(prompt, attention_mask=left)
    for mask in (left, right):
        with pytest.raises(ValueError, match="padding before tokens"):
            theirs.generate(prompt, attention_mask=mask, max_new_tokens=2)


@pytest.mark.parametrize(
    "changes",
    [{"gating_pos": "output"}, {"alibi": True}, {"kv_policy": {"kind": "window", "window": 4}}, {"selector": "dsa"}],
)
def test_what_no_class_of_theirs_computes_is_not_given_out_as_one(changes: dict[str, Any], tmp_path: Path) -> None:
    attn = {"kind": "MHA", "heads": 2, "head_dim": 8}
    block = {"attn": attn, "ffn": {"kind": "dense", "hidden": 24}}
    plain = Blueprint.model_validate({"emb": {"dim": 16, "vocab": 50}, "blocks": [block, block]})
    files = model_files(plain, initial_state(plain, 0))
    assert json.loads(files["config.json"])["model_type"] == "llama"
    assert "modeling_morphogen.py" not in files
    one = {**block, "attn": {**attn, **changes}}
    odd = Blueprint.model_validate({"emb": {"dim": 16, "vocab": 50}, "blocks": [block, one]})
    assert json.loads(model_files(odd, initial_state(odd, 0))["config.json"])["model_type"] == "morphogen"


def test_norms_that_grew_are_not_given_out_as_one_eps() -> None:
    block = {"attn": {"kind": "MHA", "heads": 2, "head_dim": 8}, "ffn": {"kind": "dense", "hidden": 24}}
    plain = Blueprint.model_validate({"emb": {"dim": 16, "vocab": 50}, "blocks": [block]})
    state = initial_state(plain, 0)
    state["blocks.0.attn.norm.eps"] = torch.tensor(5e-6)
    assert json.loads(model_files(plain, state)["config.json"])["model_type"] == "morphogen"


def test_tokenizers_go_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["a few words, größer and smaller", "12 more words"] * 20
    bpe = train_bpe(texts, 300)
    (tmp_path / "their").mkdir()
    write_tokenizer(tmp_path / "their")
    (tmp_path / "bpe.json").write_text(bpe.to_json())
    for i, called in enumerate([str(tmp_path / "their"), str(tmp_path / "bpe.json")]):
        tokenizer = named(called)
        blueprint = Blueprint.model_validate(HYBRID).model_copy(update={"emb": EMB})
        path = checkpoint(tmp_path, blueprint, tokenizer, called)
        export_model(str(path), tmp_path / f"out{i}")
        theirs = AutoTokenizer.from_pretrained(tmp_path / f"out{i}")
        for text in texts[:2]:
            assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch([text])[0].tolist()
        assert theirs.eos_token_id == tokenizer.eot


EMB = Blueprint.model_validate(HYBRID).emb.model_copy(update={"vocab": 400})


@pytest.mark.parametrize("below", ["", "checkpoints"])
@pytest.mark.parametrize(
    ("name", "held", "beside"),
    [
        ("bpe-300", True, ""),
        ("bpe-300", False, "{kind: bpe, vocab: 300}"),
        ("gone/tokenizer.json", True, ""),
        ("bpe-300", True, "bytes"),
    ],
)
def test_a_tokenizer_that_a_training_left_goes_along(
    name: str, held: bool, beside: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the checkpoint, or as the experiment beside it says: a finished model's, or above, as of others."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("MORPHOGEN_CACHE", str(tmp_path / "cache"))
    text = "a few words, größer and smaller\n\n" * 200
    (tmp_path / "text.txt").write_text(text)
    shards = [{"source": f"{tmp_path}/text.txt"}]
    bpe = tokenizer_of(Data.model_validate({"tokenizer": {"kind": "bpe", "vocab": 300}, "shards": shards}))
    assert isinstance(bpe, PieceTokenizer)
    blueprint = Blueprint.model_validate(HYBRID).model_copy(update={"emb": EMB})
    (tmp_path / "of" / below).mkdir(parents=True)
    path = checkpoint(tmp_path / "of" / below, blueprint, bpe, name, bpe.to_json() if held else "")
    if beside:
        data = {"tokenizer": yaml.safe_load(beside), "shards": shards}
        told = {"model": blueprint.to_json(), "data": data}
        (tmp_path / "of" / "experiment.yaml").write_text(json.dumps(told))
    export_model(str(path), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(text, add_special_tokens=False)["input_ids"] == bpe.encode_batch([text])[0].tolist()


def test_a_tokenizer_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    bpe = train_bpe(["a few words"], 300)
    path = checkpoint(tmp_path, Blueprint.model_validate(HYBRID).model_copy(update={"emb": EMB}), bpe, "bpe-300")
    with pytest.raises(InputError, match=r"its tokenizer 'bpe-300' is not in it; .* or give it with --tokenizer$"):
        export_model(str(path), tmp_path / "out")


def test_what_cannot_be_exported_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    blueprint = Blueprint.model_validate(HYBRID)
    path = checkpoint(tmp_path, blueprint, ByteTokenizer(), "bytes")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"out: is there already; --force"):
        export_model(str(path), out)
    assert (out / "mine.txt").read_text() == "mine"
    with pytest.raises(InputError, match=r"nowhere.safetensors: no such checkpoint"):
        export_model(str(tmp_path / "nowhere.safetensors"), tmp_path / "new")
    write_tokenizer(tmp_path / "their")
    with pytest.raises(InputError, match=r"were trained with the tokenizer 'bytes'"):
        export_model(str(path), tmp_path / "new", tokenizer=str(tmp_path / "their"))
    assert not (tmp_path / "new").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["it.safetensors", "out", "their"]
    with pytest.raises(InputError, match="holds no model that could be replaced"):
        export_model(str(path), out, force=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds it.safetensors, which is to be exported"):
        export_model(str(path), tmp_path, force=True)
    (out / "config.json").write_text("{}")
    export_model(str(path), out, force=True)
    assert not (out / "mine.txt").exists()


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, Blueprint.model_validate(HYBRID), ByteTokenizer(), "bytes")
    out = tmp_path / "out"
    export_model(str(path), out)
    before = (out / "model.safetensors").read_bytes()
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(self)
        if self.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RunError, match="No space left"):
        export_model(str(path), out, force=True)
    assert calls
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["it.safetensors", "out"]


@pytest.mark.slow
@settings(max_examples=20, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_blueprints_go_out_with_equal_logits_and_256_equal_tokens(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr("morphogen.plugins.entry_points", installed)
        blueprint = data.draw(blueprints())
        state = stirred(blueprint, dtype=torch.float32)
        written(Path(name), blueprint, state)
        assert_same(loaded(Path(name)), blueprint, state, blueprint.context().vocab, 256)


def test_layers_of_other_models_are_loaded_where_those_models_are_not(tmp_path: Path) -> None:
    llama(tmp_path / "a")
    model = foreign_blueprint(tmp_path, "a0 a2", router="token", lora=2)
    state = stirred(model, dtype=torch.float32)
    written(tmp_path / "out", model, state)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(tmp_path) not in json.dumps(told)
    shutil.rmtree(tmp_path / "a")
    found = loaded(tmp_path / "out")
    found.save_pretrained(tmp_path / "again")
    llama(tmp_path / "a")
    for again in (found, loaded(tmp_path / "again")):
        assert_same(again, model, state, VOCAB, 12)
    ids_BT = torch.randint(VOCAB, (2, 7))
    found.train()(ids_BT, labels=ids_BT).loss.backward()
    assert sum(p.grad is not None for p in found.parameters()) > 5


def test_a_card_names_the_models_whose_layers_are_run() -> None:
    from morphogen.fusion import card
    from morphogen.parts.foreign.foreign import Foreign, ForeignLayerOf

    part = Foreign(experts=(ForeignLayerOf(model="/at/x", layer=0), ForeignLayerOf(model="owner/y", layer=1)))
    block = Block(id="b0", extras=(part,))
    said = "\n".join(card._borrowing(Blueprint.model_construct(blocks=(block,))))
    assert "- `/at/x`: layers 0\n- `owner/y`: layers 1" in said
    assert card._borrowing(Blueprint.model_construct(blocks=())) == []
