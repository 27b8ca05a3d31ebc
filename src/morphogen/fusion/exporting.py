"""A model of ours as a folder that transformers loads: in a class of its own where one fits, else with ours beside it.

The folder appears whole or not at all.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from morphogen import __version__
from morphogen.beside import TEXT, tokenizer_beside
from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.tensors import parameter_count
from morphogen.blueprint.yaml import dumps
from morphogen.candidate import MOMENTS_SUFFIX
from morphogen.data.tokenizers import ByteTokenizer, PieceTokenizer, Tokenizer, named
from morphogen.errors import InputError, RunError, unknown
from morphogen.fusion import card
from morphogen.fusion.native import native
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.inherit.excerpts import layers_taken
from morphogen.inherit.provenance import Provenance
from morphogen.paths import user_path
from morphogen.store.files import scratch, write_atomic
from morphogen.store.places import with_donors

#: The file with our class, of this package, and its classes.
MODELING = "modeling_morphogen.py"
AUTO_MAP = {
    "AutoConfig": "modeling_morphogen.MorphogenConfig",
    "AutoModelForCausalLM": "modeling_morphogen.MorphogenForCausalLM",
}
#: A text that tells tokenizers apart.
SAMPLE = "Größer than 1234.5?\n\tdef f(x):  return x_1 + 'a' # 日本 x\r\n  end"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Exported:
    """What an export wrote. architecture: the type of a class of transformers' own, or `morphogen`."""

    folder: Path
    architecture: str
    parameters: int
    checkpoint: Path


def checkpoint_of(what: str, run: Path | None) -> Path:
    """The file of a checkpoint: one by its path, or of a candidate by its id, in `run` or in the one run below `runs/`
    that has it. InputError where there is none."""
    path = user_path(what, "CANDIDATE")
    if run is None and path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"{what}: no such checkpoint")
        return path
    runs = [run] if run else sorted(each for each in Path("runs").glob("*") if each.is_dir())
    found = [each / "checkpoints" / f"{what}.safetensors" for each in runs]
    found = [each for each in found if each.is_file()]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise InputError(f"{what}: {len(found)} runs have it ({found[0].parts[-3]}, ...); say which with --run")
    files = [each for folder in runs for each in (folder / "checkpoints").glob("*.safetensors")]
    names = [each.stem for each in files if not each.name.endswith(MOMENTS_SUFFIX)]
    place = f"candidate with a checkpoint in {run}" if run else "candidate with a checkpoint below runs/"
    raise InputError(unknown(place, what, names) if names else f"{what}: no such checkpoint, and no {place}")


def export_model(
    what: str, out: Path, *, run: Path | None = None, tokenizer: str | None = None, force: bool = False
) -> Exported:
    """Writes a model as a folder that transformers' Auto classes load.

    Args:
        what: A checkpoint by its path, or a candidate by its id.
        out: The folder to write.
        run: The run's folder, where `what` is an id.
        tokenizer: What the weights were trained with, where that is not on record.
        force: Whether a folder that lies there is replaced.

    Raises:
        InputError: The checkpoint or its tokenizer cannot be had, or something lies at `out`.
        RunError: Nothing can be written.
    """
    if out.exists() and not (out.is_dir() and (force or not any(out.iterdir()))):
        raise InputError(f"{out}: is there already; --force replaces a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise InputError(f"{out}: holds no model that could be replaced, expected a folder with config.json")
    checkpoint = checkpoint_of(what, run)
    if out.resolve() in checkpoint.resolve().parents:
        raise InputError(f"{out}: holds {checkpoint.name}, which is to be exported; expected another folder")
    state, blueprint, metadata = load_checkpoint(checkpoint, measured=True)
    provenance = Provenance.from_metadata(metadata, checkpoint)
    its = _tokenizer(tokenizer, provenance, checkpoint, metadata)
    files = model_files(blueprint, state)
    with scratch("morphogen-export-") as folder:
        carried = tokenizer is None and bool(metadata.get(TEXT))
        _write_tokenizer(its, tokenizer or provenance.name, folder, carried=carried)
        if MODELING not in files and not _loads(its, files["config.json"], folder):
            files = model_files(blueprint, state, own=True)
        files |= {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name[0] != "."}
    kind = json.loads(files["config.json"])["model_type"]
    told = card.told(checkpoint, blueprint, provenance, kind, metadata.get("candidate", ""))
    files["README.md"] = told.encode()
    _write_folder(out, files)
    return Exported(out, kind, parameter_count(blueprint), checkpoint)


def model_files(blueprint: Blueprint, state: Mapping[str, Tensor], *, own: bool = False) -> dict[str, bytes]:
    """The files of a folder that transformers loads as a model, without a tokenizer: name to content.

    own: with our class, even where one of theirs computes the same.
    """
    found = None if own else native(blueprint, state)
    files: dict[str, bytes] = {}
    if found is not None:
        config = _native_config(found.kind, found.fields)
        tensors = found.tensors
    else:
        config = {
            "model_type": "morphogen",
            "architectures": ["MorphogenForCausalLM"],
            "auto_map": AUTO_MAP,
            **_described(blueprint),
            "vocab_size": blueprint.context().vocab,
            "hidden_size": blueprint.emb.dim,
            "num_hidden_layers": len(blueprint.blocks),
            "tie_word_embeddings": False,
            "morphogen_version": __version__,
        }
        tensors = {f"model.{name}": tensor for name, tensor in state.items()}
        files[MODELING] = (Path(__file__).parent / MODELING).read_bytes()
    files["config.json"] = (json.dumps({**config, "dtype": "float32"}, indent=2) + "\n").encode()
    files["blueprint.yaml"] = dumps(blueprint).encode()
    whole = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    files["model.safetensors"] = save(whole, {"format": "pt"})
    return files


def _described(blueprint: Blueprint) -> dict[str, Any]:
    """The blueprint, and the configs of the models that it has layers of, under names that stand for them."""
    plain = blueprint.model_copy(update={"growth": ()}).to_json()
    if not (taken := layers_taken([blueprint])):
        return {"blueprint": plain}
    from morphogen.parts.foreign.donors.donor import CONFIG
    from morphogen.parts.foreign.donors.files import read_json
    from morphogen.parts.foreign.donors.opened import described_name, donor_of

    configs = {model: read_json(donor_of(model).folder / CONFIG) for model in taken}
    names = {model: described_name(model, config) for model, config in configs.items()}
    return {
        "blueprint": with_donors(plain, names),
        "donors": {names[model]: config for model, config in configs.items()},
    }


def _native_config(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The whole config of a class of transformers' own."""
    import transformers

    config = transformers.CONFIG_MAPPING[kind](**fields)
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    ends = {f"{which}_token_id": None for which in ("bos", "eos", "pad")}
    return {**found, **ends, "architectures": [model.__name__]}


def _tokenizer(given: str | None, provenance: Provenance, checkpoint: Path, metadata: dict[str, str]) -> Tokenizer:
    """What the weights were trained with. InputError where that cannot be had."""
    if given is None:
        try:
            return tokenizer_beside(checkpoint, metadata)
        except InputError as error:
            raise InputError(f"{error}; or give it with --tokenizer") from None
    found = named(given)
    if provenance.tokenizer not in (None, found.digest):
        raise InputError(
            f"{checkpoint}: its weights were trained with the tokenizer {provenance.name!r} ({provenance.tokenizer}), "
            f"but {given!r} is now {found.digest}; give that very one with --tokenizer"
        )
    return found


def _write_tokenizer(tokenizer: Tokenizer, name: str, folder: Path, *, carried: bool) -> None:
    """The files that `AutoTokenizer` reads. carried: the checkpoint holds it, so that nothing is asked of its name."""
    import tokenizers
    import transformers

    if isinstance(tokenizer, ByteTokenizer):
        pieces = _bytes_as_pieces()
    elif isinstance(tokenizer, PieceTokenizer) and not carried and _of_hugging_face(name):
        transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(folder)
        return
    elif isinstance(tokenizer, PieceTokenizer):
        pieces = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    else:
        raise InputError(
            f"tokenizer {name!r}: is of a kind that transformers cannot load, expected one of `tokenizers`"
        )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token=END_OF_TEXT)
    if fast.eos_token_id != tokenizer.eot:
        raise InputError(f"tokenizer {name!r}: its end of text cannot be written")
    fast.save_pretrained(folder)


def _of_hugging_face(name: str) -> bool:
    """Whether a tokenizer is called by its folder, or by its name on the hub."""
    return Path(name).is_dir() or not (Path(name).is_file() or re.fullmatch(r"bpe-\d+", name))


def _loads(tokenizer: Tokenizer, config: bytes, folder: Path) -> bool:
    """Whether `AutoTokenizer` gives the tokenizer back: for some architectures it takes a class of its own choice."""
    import transformers

    write_atomic(folder / "config.json", config)
    found = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    (folder / "config.json").unlink()
    ids = found(SAMPLE, add_special_tokens=False)["input_ids"]
    return bool(ids == tokenizer.encode_batch([SAMPLE])[0].tolist())


def _bytes_as_pieces() -> Any:
    """The bytes of UTF-8 as a tokenizer of `tokenizers`, each with its value as its id."""
    from tokenizers import Tokenizer as Pieces
    from tokenizers import decoders, models, pre_tokenizers

    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # these stand for themselves, the rest follow 255
    others = {value: 256 + i for i, value in enumerate(sorted(set(range(256)) - set(plain)))}
    vocab = {chr(others.get(value, value)): value for value in range(256)}
    pieces = Pieces(models.BPE(vocab, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.decoder = decoders.ByteLevel()
    return pieces


def _write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files beside `out` first, and renames the folder; one that was there goes last."""
    made = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        made.mkdir(parents=True)
        for name, data in files.items():
            write_atomic(made / name, data)
        if out.exists():
            out.rename(old)
        made.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
