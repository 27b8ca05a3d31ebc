"""A trained model of another framework as the root of a search: its blueprint, its weights, its tokenizer.

Weights are read from safetensors alone, tensor by tensor; remote code is never run.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count, specs
from morphogen.blueprint.yaml import dumps
from morphogen.data.tokenizers import Tokenizer, named
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError, unknown
from morphogen.experiment import Experiment
from morphogen.fusion.describe import Config, Layout, read_decoder
from morphogen.fusion.describe_ssm import SSMS
from morphogen.fusion.dialects import DIALECTS, REFUSED, SILENT
from morphogen.fusion.taking import Taken, taken
from morphogen.inherit.checkpoint import save_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.parts.foreign.donors.files import WHOLE, Files, model_files, read_json
from morphogen.parts.foreign.donors.weights import Weights
from morphogen.paths import user_path
from morphogen.store.files import write_atomic

#: Longest sequences that the written experiment trains on.
SEQ_LEN = 256


def layout_of(folder: Path) -> Layout:
    """What the config of a folder describes. InputError for what is unknown, or what a blueprint cannot say."""
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{path}: has no model_type, expected one of {', '.join(sorted([*DIALECTS, *SSMS]))}")
    if kind in REFUSED:
        raise InputError(f"{path}: architecture {kind!r} cannot be said by a blueprint: {REFUSED[kind]}")
    if kind not in DIALECTS and kind not in SSMS:
        raise InputError(unknown(f"{path}: architecture", kind, [*DIALECTS, *SSMS]))
    if "quantization_config" in raw:
        raise InputError(f"{path}: its weights are quantised, expected floating-point numbers")
    fields, defaults = _with_defaults(folder)
    config = Config(fields)
    try:
        layout = SSMS[kind](config) if kind in SSMS else read_decoder(config, DIALECTS[kind])
    except InputError as error:
        raise InputError(str(error).replace("config.json", str(path), 1)) from None
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise InputError(f"{path}: a field is not what it should be ({error})") from None
    left = (name for name in fields if name not in config.read | SILENT)
    odd = [name for name in left if name not in defaults or fields[name] != defaults[name]]
    if odd:
        said = "; ".join(f"{name} is {fields[name]!r}" for name in sorted(odd))
        raise InputError(f"{path}: {said}, which cannot be honoured")
    return layout


def _with_defaults(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a config with those that it leaves to its defaults, and these."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return config.to_dict(), type(config)().to_dict()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read ({' '.join(str(error).split())[:200]})") from None


def weights_of(folder: Path, layout: Layout) -> dict[str, Tensor]:
    """Our state dict. InputError for tensors that are missing, of another shape, or that nothing is made of."""
    return _read(folder, layout, whole=True)


def stem_of(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any], dict[str, Tensor]]:
    """What is around a model's blocks: fields of the embedding, kind of the norm, fields of the head, and the weights.
    Of the layers nothing is read. InputError as `layout_of` and `weights_of`."""
    layout = layout_of(folder)
    around = {name: taken for name, taken in layout.tensors.items() if not name.startswith("blocks.")}
    state = _read(folder, replace(layout, tensors=around), whole=False)
    emb, head = layout.blueprint.emb, layout.blueprint.head
    return emb.model_dump(mode="json"), layout.blueprint.norm, head.model_dump(mode="json"), state


def _read(folder: Path, layout: Layout, *, whole: bool) -> dict[str, Tensor]:
    """whole: whether tensors that nothing is made of are a mistake."""
    weights = Weights(Files(folder))
    base = layout.prefix if not any(name.startswith(layout.prefix) for name in weights) else ""
    if "embed_out.weight" not in weights and "lm_head.weight" in weights:
        layout = layout.renamed("embed_out.weight", "lm_head.weight")
    table = specs(layout.blueprint)
    shapes = {name: table[name][2].shape for name in table if name in layout.tensors or whole}
    sources = {source.name: source for source in layout.tensors.values() if isinstance(source, Taken)}
    missing = sorted(name for name in sources if name.removeprefix(base) not in weights)
    if missing:
        raise InputError(
            f"{folder}: lacks {len(missing)} tensors that its config asks for, the first of them {missing[0]}"
        )
    known = {name.removeprefix(base) for name in sources}
    spare = sorted(name for name in weights if name not in known and not name.endswith(layout.spare))
    if spare and whole:
        raise InputError(f"{folder}: has {len(spare)} tensors that no blueprint has, the first of them {spare[0]}")
    last: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        if name not in last:  # several of ours may lie in one of theirs, one after another
            last.clear()
            last[name] = weights[name.removeprefix(base)]
        found = last[name]
        if tuple(found.shape) != sources[name].of:
            raise InputError(
                f"{folder}: {name} has shape {tuple(found.shape)}, expected {sources[name].of} by its config"
            )
        return found

    return taken(layout.tensors, shapes, read)


def imported(model: str) -> tuple[Blueprint, dict[str, Tensor]]:
    """Reads a trained model of another framework.

    >>> blueprint, state = imported("path/to/folder")
    >>> model = assemble(blueprint, state)

    Args:
        model: Its folder, or its name on the hub.

    Returns:
        The blueprint and a state dict for it; logits are those of the model in fp32, to rounding.

    Raises:
        InputError: It cannot be read, or a blueprint cannot say what it computes.
    """
    folder = model_files(model, WHOLE).folder
    layout = layout_of(folder)
    return layout.blueprint, weights_of(folder, layout)


@dataclass(frozen=True)
class Imported:
    """What an import wrote: the experiment, its weights, and what is to be known of them."""

    experiment: Path
    checkpoint: Path
    architecture: str
    parameters: int
    notes: tuple[str, ...]


def import_model(model: str, out: Path, *, tokenizer: str | None = None, force: bool = False) -> Imported:
    """Writes an experiment whose root is a trained model: `out` in YAML, the weights beside it as safetensors.

    Args:
        model: Its folder, or its name on the hub.
        out: The YAML to write.
        tokenizer: What to use in place of the model's own, as `data.tokenizer`.
        force: Whether what lies there is overwritten.

    Raises:
        InputError: The model cannot be read, a blueprint cannot say what it computes, or files are there already.
        RunError: Nothing can be written.
    """
    if out.suffix not in (".yaml", ".yml") or out.is_dir():
        raise InputError(f"{out}: expected the name of a file that ends in .yaml; the weights come to lie beside it")
    checkpoint = out.with_suffix(".safetensors")
    if there := [path for path in (out, checkpoint) if path.exists() and not force]:
        raise InputError(f"{there[0]}: is there already; --force overwrites it")
    folder = model_files(model, WHOLE).folder
    layout = layout_of(folder)
    called = tokenizer or (str(folder.resolve()) if user_path(model, "MODEL").exists() else model)
    its = _tokenizer(called, folder, own=tokenizer is None)
    vocab = layout.blueprint.context().vocab
    if its.vocab_size > vocab:
        raise InputError(
            f"{model}: its embedding has {vocab} rows, but the tokenizer {called!r} has {its.vocab_size} tokens"
        )
    state = weights_of(folder, layout)
    behind = Provenance(its.digest, called, Vocabulary(its.pieces, its.eot).pack())
    save_checkpoint(checkpoint, state, layout.blueprint, behind.to_metadata())
    notes = tuple(f"config.json: {note}" for note in layout.notes)
    text = f"# {layout.blueprint.name}, imported from {model}: what evolution begins with. `morphogen run {out.name}`\n"
    text += "# goes on from its weights. Text is the standard library's source until data.shards names your own.\n"
    write_atomic(out, (text + dumps(_experiment(layout.blueprint, called, checkpoint.name))).encode())
    return Imported(out, checkpoint, layout.blueprint.name, parameter_count(layout.blueprint), notes)


def _tokenizer(called: str, folder: Path, *, own: bool) -> Tokenizer:
    if own and not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise InputError(f"{folder}: has no tokenizer, expected tokenizer.json; or name one with --tokenizer")
    return named(called)


def _experiment(blueprint: Blueprint, tokenizer: str, checkpoint: str) -> Experiment:
    """A short sweep from the model, on text that is on every machine."""
    seq_len = min(SEQ_LEN, blueprint.emb.positions or SEQ_LEN)
    batch_size = 8
    tokens = 16 * seq_len * batch_size
    return Experiment.model_validate(
        {
            "model": blueprint,
            "train": {"lr": 1e-4, "warmup": 5, "init_checkpoint": checkpoint, "instability_threshold": 1000.0},
            "data": {
                "tokenizer": tokenizer,
                "seq_len": seq_len,
                "batch_size": batch_size,
                "shards": [{"source": "stdlib-code"}],
                "eval_tokens": 4 * seq_len * batch_size,
            },
            "evolution": {
                "generations": 2,
                "population": 4,
                "topk_keep": 3,
                "rung1_tokens": tokens,
                "rung2_tokens": 2 * tokens,
                "objectives": {"bpb": "min", "flops_per_token": "min", "params": "min"},
            },
        }
    )
