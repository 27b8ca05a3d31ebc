"""Models made of layers of other models: for those who want fusion alone, without a search.

A `FusionModel` is a blueprint whose blocks are `foreign` parts behind the embedding of a host and before its head. So
all that is there for blueprints is there for it: training, growth, search, export.

B batch, T tokens, V vocabulary, N lanes
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from morphogen.blueprint.schema import Blueprint
from morphogen.blueprint.yaml import dumps
from morphogen.candidate import DonorLayer
from morphogen.data.tokenizers import Tokenizer, named
from morphogen.data.vocabulary import Vocabulary
from morphogen.errors import InputError, unknown
from morphogen.experiment import Experiment
from morphogen.fusion.calibrating import Fit, calibrate
from morphogen.fusion.importing import stem_of
from morphogen.fusion.stacking import Named, model_folders, model_names, stacked, stages, ways_out
from morphogen.inherit.borrowed import donors_of, donors_told
from morphogen.inherit.checkpoint import load_checkpoint, save_checkpoint
from morphogen.inherit.provenance import Provenance
from morphogen.network import assemble, check_ids, initial_state
from morphogen.ops.ambient import as_usual
from morphogen.parts.foreign.donors.files import WHOLE, model_files, read_json
from morphogen.parts.foreign.foreign import Foreign
from morphogen.parts.foreign.foreign_layer import ForeignBranch
from morphogen.paths import user_path
from morphogen.reading import moved
from morphogen.store.files import write_atomic
from morphogen.store.places import LAYOUT, moved_paths

#: Files of a saved model beside `LAYOUT`, how it is made: its weights without those of frozen layers; what trains it.
WEIGHTS, EXPERIMENT = "model.safetensors", "experiment.yaml"
#: What stands above the experiment.
HEAD = (
    "# Layers of several models, fused. `morphogen train experiment.yaml` trains what is not frozen; text is\n"
    "# the standard library's source until data.shards, or --data, names your own.\n"
)


class Routed(NamedTuple):
    """Who got how much in one block: of every layer its share of the gates, averaged over tokens, and how evenly one
    token's gates were spread, in nats."""

    block: str
    layers: tuple[str, ...]
    share: tuple[float, ...]
    entropy: float


class FusionModel(nn.Module):
    """Layers of several trained models, one behind another, within the embedding and head of one of them, the host.

    >>> model = FusionModel({"a": "path/to/a", "b": "path/to/b"}, [[("a", 0)], [("a", 1), ("b", 3)]], router="token")
    >>> model.generate("Once upon")

    A block of one layer with the host's width starts as that very layer: all layers of the host in order give the
    host's logits. Where widths differ a layer is read and written through a semi-orthogonal matrix and its transpose.
    """

    @as_usual()
    def __init__(
        self,
        models: Mapping[str, str] | Sequence[str],
        layers: Sequence[Sequence[Named] | Named],
        *,
        host: str | None = None,
        adapter: str = "linear",
        router: str = "none",
        freeze_embedding: bool = True,
        freeze_head: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Reads the layers, and what is around them of the host.

        Args:
            models: Name to folder or name on the hub; of a list alone, the names are the folders'.
            layers: The blocks in order. Of a block with several layers the router says which a token gets how much of;
                without one they run in order.
            host: The model whose tokenizer, embedding and head are used; the first where not given.
            adapter: As a `foreign` part's: `linear`, or `bottleneck`, with which blocks start without effect.
            router: `none`, `simple` or `token`.
            freeze_embedding: Whether the embedding stays as it is.
            freeze_head: Whether the head does; a tied one is the embedding.
            seed: Of what is new.
            options: Other fields of a `foreign` part: `top_k`, `pooling`, `bottleneck`, `freeze`, `lora`, ...

        Raises:
            InputError: A model cannot be read, a layer does not exist, or an option is not what it can be.
        """
        super().__init__()
        if not isinstance(layers, Sequence) or isinstance(layers, str):
            raise InputError(f"layers: got {layers!r}, expected a list of layers")
        folders = model_folders(models)
        host = next(iter(folders)) if host is None else host
        if host not in folders:
            raise InputError(unknown("host", host, folders))
        emb, norm, head, around = stem_of(model_files(folders[host], WHOLE).folder)
        blocks = stages(layers, folders, {"adapter": adapter, "router": router, **options})
        frozen = {**head, **({} if head["tie_embeddings"] else {"freeze": freeze_head})}
        said = {"name": "fused", "emb": {**emb, "freeze": freeze_embedding}, "norm": norm, "head": frozen}
        blueprint = stacked({**said, "blocks": blocks})
        state = initial_state(blueprint, seed) | around
        state |= ways_out(blueprint, state)
        self._take(blueprint, state, folders, folders[host], donors_of(blueprint, state))

    def _take(
        self,
        blueprint: Blueprint,
        state: Mapping[str, Tensor],
        models: Mapping[str, str],
        tokenizer: str,
        donors: tuple[DonorLayer, ...],
    ) -> None:
        self._donors = donors
        self.models, self.tokenizer_name, self.tokenizer = dict(models), tokenizer, _tokenizer(tokenizer)
        if (size := self.tokenizer.vocab_size) > (rows := blueprint.context().vocab):
            raise InputError(f"{tokenizer}: its embedding has {rows} rows, but its tokenizer {size} tokens")
        self.model = assemble(blueprint, state)

    @property
    def blueprint(self) -> Blueprint:
        """What it is made of."""
        return self.model.blueprint

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V); position t sees tokens 0..t."""
        logits_BTV: Tensor = self.model(ids_BT)
        return logits_BTV

    def generate(
        self,
        prompt: str | Tensor,
        tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> str | Tensor:
        """What follows a prompt, by a cache of keys and values: text for a text, and (B, T + tokens) ids for ids.

        Text ends with the document; an empty one is the beginning of any. InputError for ids of no token, or a number
        out of range.
        """
        if isinstance(prompt, Tensor):
            return self.model.generate(prompt, tokens, temperature=temperature, top_k=top_k, seed=seed)
        given = self._ids(prompt)
        found = self.model.generate(given, tokens, temperature=temperature, top_k=top_k, seed=seed)
        new = found[0, given.shape[1] :].tolist()
        new = new[: new.index(self.tokenizer.eot)] if self.tokenizer.eot in new else new
        return self.tokenizer.decode([i for i in new if i < self.tokenizer.vocab_size])

    def routing(self, text: str | Tensor) -> list[Routed]:
        """Who is routed where on a text, or on ids (B, T): of every block that has a router."""
        ids_BT = text if isinstance(text, Tensor) else self._ids(text)
        if ids_BT.dim() != 2 or not ids_BT.numel():
            raise InputError(
                f"routing: got ids of shape {tuple(ids_BT.shape)}, expected (B, T) with at least one token"
            )
        check_ids(ids_BT, self.blueprint.context().vocab, "routing")
        names = {folder: name for name, folder in self.models.items()}
        seen: dict[int, Tensor] = {}
        handles = []
        for place, branch in self._branches():
            if branch.router is not None:
                hook = branch.register_forward_pre_hook(lambda _, inputs, place=place: seen.update({place: inputs[0]}))
                handles.append(hook)
        mode = self.training
        self.eval()
        try:
            with torch.no_grad():
                self.model(ids_BT)
                routed = {place: branch.gates(seen[place]) for place, branch in self._branches() if place in seen}
        finally:
            self.train(mode)
            for handle in handles:
                handle.remove()
        return [self._routed(place, gates_BTN, names) for place, gates_BTN in routed.items() if gates_BTN is not None]

    def _routed(self, place: int, gates_BTN: Tensor, names: Mapping[str, str]) -> Routed:
        block = self.blueprint.blocks[place]
        part = next(extra for extra in block.extras if isinstance(extra, Foreign))
        called = tuple(f"{names.get(e.model, Path(e.model).name)}:{e.layer}" for e in part.experts)
        share_N = gates_BTN.flatten(0, 1).double().mean(0)
        entropy = torch.special.entr(gates_BTN.double()).sum(-1).mean()
        return Routed(block.id, called, tuple(share_N.tolist()), float(entropy))

    def picture(self, path: str | Path, text: str | Tensor) -> None:
        """Draws who is routed where on a text, as PNG. InputError without a block that has a router."""
        from morphogen.report.routing import picture

        if not (routed := self.routing(text)):
            raise InputError("picture: no block has a router, expected router 'simple' or 'token' and several layers")
        rows = [(one.block, one.layers, one.share) for one in routed]
        write_atomic(user_path(str(path), "picture"), picture(rows))

    @as_usual()
    def calibrate(self, texts: Iterable[str], tokens: int = 4096) -> list[Fit]:
        """Fits the ways into layers, and out of them, to text: see `fusion.calibrating.calibrate`."""
        return calibrate(self.model, self.tokenizer, texts, tokens=tokens)

    def save(self, folder: str | Path, text: str | Tensor | None = None) -> Path:
        """Writes the weights, the layout, and an experiment that `morphogen train` and `morphogen run` go on from; with
        a text, also who is routed where on it, as `routing.json` and `routing.png`.

        Weights of frozen layers stay where they are; the checkpoint knows their hashes, the layout where they are as
        seen from the folder, so that both may be moved together. Returns the folder. RunError where it cannot be
        written, InputError where a model's layers are no longer what they were.
        """
        place = user_path(str(folder), "folder")
        vocabulary = Vocabulary(self.tokenizer.pieces, self.tokenizer.eot).pack()
        behind = Provenance(self.tokenizer.digest, self.tokenizer_name, vocabulary, donors=self._donors)
        save_checkpoint(place / WEIGHTS, self.model.state_dict(), self.blueprint, behind.to_metadata())
        seen = {path: _seen_from(place, path) for path in (*self.models.values(), self.tokenizer_name)}
        layout = {**self._layout(), "models": {name: seen[path] for name, path in self.models.items()}}
        paths = {path: there for path, there in seen.items() if path != there}
        write_atomic(place / LAYOUT, json.dumps({**layout, "paths": paths}, indent=2).encode())
        fields = {
            "model": self.blueprint,
            "train": {"lr": 1e-4, "warmup": 20, "init_checkpoint": WEIGHTS},
            "data": {"tokenizer": self.tokenizer_name, "seq_len": min(256, self.blueprint.emb.positions or 256)},
        }
        if text is not None and (routed := self.routing(text)):
            write_atomic(place / "routing.json", json.dumps([one._asdict() for one in routed], indent=2).encode())
            self.picture(place / "routing.png", text)
        write_atomic(place / EXPERIMENT, (HEAD + dumps(moved(Experiment.model_validate(fields), paths))).encode())
        return place

    @classmethod
    @as_usual()
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote, or a checkpoint of a later training of it.

        InputError where it cannot be read, its layers are not what they were, or the layout beside it is another.
        """
        given = user_path(str(path), "path")
        file = given / WEIGHTS if given.is_dir() else given
        state, blueprint, metadata = load_checkpoint(file, measured=True)
        sources = list(dict.fromkeys(e.model for part in _foreign(blueprint) for e in part.experts))
        if not sources:
            raise InputError(f"{file}: has no layer of another model, expected a checkpoint of a fused model")
        if not (called := metadata.get("tokenizer_name")):
            raise InputError(f"{file}: does not say its tokenizer")
        now = moved_paths(file.parent) or moved_paths(file.parent.parent)
        called = now.get(called, called)
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        models = dict(zip(model_names(sources), sources, strict=True))
        layout = file.parent / LAYOUT
        told = read_json(layout) if layout.is_file() else None
        if told is not None:
            told.pop("paths", None)
            if isinstance(told.get("models"), dict):
                named_there = {str(name): _from(file.parent, str(source)) for name, source in told["models"].items()}
                told["models"] = models = {name: now.get(source, source) for name, source in named_there.items()}
        made._take(blueprint, state, models, called, donors_told(file, metadata))
        if told is not None and told != (own := made._layout()):
            odd = next(name for name in {**told, **own} if told.get(name) != own.get(name))
            raise InputError(
                f"{layout}: its {odd} is not that of {file.name}: found {json.dumps(told.get(odd))}, expected "
                f"{json.dumps(own.get(odd))}"
            )
        return made

    def _layout(self) -> dict[str, Any]:
        """How it is made, as JSON."""
        names = {folder: name for name, folder in self.models.items()}
        return {
            "models": self.models,
            "layers": [
                [[names.get(e.model, e.model), e.layer] for e in part.experts] for part in _foreign(self.blueprint)
            ],
            "routers": [part.router for part in _foreign(self.blueprint)],
            "adapters": [part.adapter for part in _foreign(self.blueprint)],
        }

    def _ids(self, text: str) -> Tensor:
        """(1, T): as documents begin in training, after the end of another."""
        ids = self.tokenizer.encode_batch([text])[0].tolist() if text else []
        return torch.tensor([[self.tokenizer.eot, *ids]], device=self.model.emb.weight.device)

    def _branches(self) -> list[tuple[int, ForeignBranch]]:
        """Position of a block, and the branch that runs its layers."""
        found = []
        for place, block in enumerate(self.model.blocks):
            found += [(place, branch) for branch in block.modules() if isinstance(branch, ForeignBranch)]
        return found


def _foreign(blueprint: Blueprint) -> list[Foreign]:
    return [extra for block in blueprint.blocks for extra in block.extras if isinstance(extra, Foreign)]


def _tokenizer(source: str) -> Tokenizer:
    folder = model_files(source, WHOLE).folder
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        raise InputError(f"{source}: has no tokenizer, expected tokenizer.json in the host's folder")
    return named(source)


def _seen_from(folder: Path, path: str) -> str:
    """A path relative to a folder; the name of a model on the hub as it is."""
    if not os.path.isabs(path):
        return path
    found = os.path.relpath(path, folder.resolve())
    return found if found.startswith(".") else f"./{found}"


def _from(folder: Path, seen: str) -> str:
    """The path that `_seen_from` made relative."""
    return os.path.normpath(folder.resolve() / seen) if seen.startswith(".") else seen
