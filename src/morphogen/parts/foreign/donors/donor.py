"""A trained model of transformers whose layers are taken into ours, read from its files tensor by tensor.

Only safetensors are read, and of them only what is asked for; code that comes with a model is never run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from morphogen.errors import InputError, unknown
from morphogen.parts.foreign.donors.attention import REMEMBERING
from morphogen.parts.foreign.donors.files import Files, model_files, read_json
from morphogen.parts.foreign.donors.frame import Frame
from morphogen.parts.foreign.donors.layers import ForeignLayer
from morphogen.parts.foreign.donors.names import Names
from morphogen.parts.foreign.donors.probing import FAILURES, list_of_layers, probe, seated
from morphogen.parts.foreign.donors.stems import DonorEmbedding, DonorHead
from morphogen.parts.foreign.donors.weights import Weights

#: How a layer's tensors are called here, before transformers' name.
PREFIX = "layer."
#: The file that says what a model is.
CONFIG = "config.json"
#: How layers with many experts in one tensor are run to be counted: each token by those that it chose, which needs
#: neither numbers nor types that the meta device has not.
COUNTED = "batched_mm"


class Donor:
    """A trained model that layers are taken from.

    source: its folder, or its name on the hub. architecture: its `model_type`. dim: width of its residual stream.
    vocab: rows of its embedding. bidirectional: whether its own layers see the future; here they don't.
    """

    def __init__(self, source: str, files: Files, *, weights: bool = True) -> None:
        """Reads its config and the headers of its files. InputError where its layers cannot be had.

        weights: whether there are any; a model without can be built, and read by others.
        """
        self.source = source
        self.folder: Path = files.folder
        config = read_config(files)
        self.architecture: str = config.model_type
        self._weights = Weights(files) if weights else None
        self.dim, self.n_layers, self.vocab = (
            int(config.hidden_size),
            int(config.num_hidden_layers),
            int(config.vocab_size),
        )
        with self._refusing():
            self._model, path = built(config)
            self.bidirectional, self._frame = framed(config, self.dim)
        self._path = f"{path}."
        self._named = None if self._weights is None else Names(self._weights, self._model, source)

    @property
    def _names(self) -> Names:
        if self._named is None:
            raise InputError(f"{self.source}: of this model there is the config alone, and no weights")
        return self._named

    @property
    def bytes_read(self) -> int:
        """Of its tensors, so far."""
        return 0 if self._weights is None else self._weights.bytes_read

    @property
    def available(self) -> tuple[int, ...]:
        """The layers whose weights are there, by the headers of its files: all of them, but for an excerpt."""
        return tuple(layer for layer in range(self.n_layers) if self._names.has(self._tensors(layer)))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{self.source}: layers of architecture {self.architecture!r} cannot be run by themselves: {why}"
            ) from None

    def shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The shapes of a layer's tensors; none is read. InputError for a layer that it does not have."""
        return {PREFIX + name: tuple(tensor.shape) for name, tensor in self._layer(layer).state_dict().items()}

    def read(self, layer: int) -> dict[str, Tensor]:
        """A layer's tensors, as stored. InputError for one that is missing, of another shape, or unreadable."""
        self.check(layer)
        start, names = f"{self._path}{self._index(layer)}.", self._tensors(layer)
        return {PREFIX + name.removeprefix(start): tensor for name, tensor in self._names.read(names).items()}

    def check(self, layer: int) -> None:
        """InputError where, by the headers of its files, weights of a layer are missing."""
        names = self._tensors(layer)
        if not any(self._names.has([name]) for name in names) and (available := self.available):
            listed = ", ".join(str(one) for one in available)
            raise InputError(f"{self.source}: has no weights of layer {layer}, expected one of {listed}")
        self._names.check(names)

    def _tensors(self, layer: int) -> list[str]:
        """What the model calls a layer's tensors."""
        start = f"{self._path}{self._index(layer)}."
        return [start + name.removeprefix(PREFIX) for name in self.shapes(layer)]

    def stored(self, layers: list[int]) -> dict[str, Tensor]:
        """All that its files hold of some layers, as it is there. InputError as `read`."""
        return {key: tensor for layer in layers for key, tensor in self._names.stored(self._tensors(layer)).items()}

    def checksum(self, layer: int) -> str:
        """A digest of a layer's tensors: names, types, shapes, numbers. InputError as `read`."""
        return digest(self.read(layer))

    def layer_module(self, layer: int, device: str = "meta") -> ForeignLayer:
        """A layer whose tensors are not filled. InputError for one that it does not have.

        Args:
            layer: Which.
            device: Where its tensors lie.
        """
        module = deepcopy(self._layer(layer))
        return ForeignLayer(self._frame, layer, module if device == "meta" else module.to_empty(device=device))

    def different(self) -> list[int]:
        """The first layer of every kind that there is, by what they are made of."""
        kinds = [frozenset(type(module) for module in layer.modules()) for layer in self._frame.layers]
        return [kinds.index(kind) for kind in dict.fromkeys(kinds)]

    def layer_to_count(self, layer: int) -> ForeignLayer:
        """As `layer_module`, so that what it does can be counted on the meta device. InputError likewise."""
        module = self.layer_module(layer)
        for each in module.modules():
            if isinstance(config := vars(each).get("config"), transformers.PreTrainedConfig):
                config._experts_implementation = COUNTED
        return module

    def layer(self, layer: int) -> ForeignLayer:
        """A layer with its weights, in fp32. InputError as `read`."""
        module = self.layer_module(layer)
        tensors = {name: tensor.float() for name, tensor in self.read(layer).items()}
        module.load_state_dict(tensors, strict=True, assign=True)
        return module

    def embedding(self) -> DonorEmbedding:
        """Its embedding, with weights in fp32. InputError for weights that are missing, or unreadable."""
        with self._refusing():
            return DonorEmbedding(self._model, self._path[:-1], self._names)

    def head(self) -> DonorHead:
        """Its head, with weights in fp32. InputError where it has none, or for weights missing or unreadable."""
        if self._model.base_model is self._model:
            raise InputError(f"{self.source}: architecture {self.architecture!r} has no head that guesses tokens")
        with self._refusing():
            return DonorHead(self._model, self._frame.stop.returns, self._path[:-1], self._names)

    def _index(self, layer: int) -> int:
        if not 0 <= layer < self.n_layers:
            raise InputError(f"{self.source}: has no layer {layer}, expected 0 to {self.n_layers - 1}")
        return layer

    def _layer(self, layer: int) -> torch.nn.Module:
        return self._frame.layers[self._index(layer)]


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, type, shape and content, whatever their order."""
    whole = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def open_donor(source: str) -> Donor:
    """Opens a trained model: its config and the headers of its files are read, no weights.

    Args:
        source: Its folder, or its name on the hub.

    Raises:
        InputError: It is not there, or not whole; it has weights only as pickle; its architecture is unknown, or its
            layers cannot be run by themselves.
    """
    return Donor(source, model_files(source))


def described_donor(source: str, config: Mapping[str, Any]) -> Donor:
    """A model of which there is the config alone, so that its layers can be built, and filled by others. InputError as
    `open_donor`."""
    with TemporaryDirectory(prefix="morphogen-config-") as folder:  # transformers reads configs from files
        (Path(folder) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return Donor(source, Files(Path(folder)), weights=False)


def read_config(files: Files) -> Any:
    """The config of a language model. InputError for none, or one that transformers does not know."""
    path = files.path(CONFIG)
    raw = read_json(path)
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{path}: has no model_type, expected the name of an architecture")
    if kind not in transformers.CONFIG_MAPPING:
        text = " (code that comes with a model is never run)" if "auto_map" in raw else ""
        raise InputError(unknown(f"{path}: architecture{text}", kind, list(transformers.CONFIG_MAPPING)))
    if raw.get("quantization_config") is not None:
        raise InputError(f"{path}: its weights are quantised, expected floating-point numbers")
    try:
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=False, local_files_only=True)
    except (OSError, StrictDataclassError, *FAILURES) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    if config.is_encoder_decoder:
        raise InputError(
            f"{path}: architecture {kind!r} has an encoder and a decoder, whose layers need each other;"
            " expected a model of one stack of layers"
        )
    config = config.get_text_config()
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        found = getattr(config, name) if hasattr(config, name) else None
        if isinstance(found, int) and found < 1:
            raise InputError(f"{path}: {name} is {found}, expected at least 1")
        if not isinstance(found, int) and name != "num_attention_heads":  # which may differ from layer to layer
            raise InputError(
                f"{path}: architecture {kind!r} has no {name}, expected a language model of layers in a row"
            )
    return config


def built(config: Any) -> tuple[Any, str]:
    """A model on the meta device, with a head where its architecture has one, and the name of the list of its layers.

    LookupError where there is no such list.
    """
    model = _on_meta(config, _class_of(config))
    path = list_of_layers(model, int(config.num_hidden_layers))
    if path is None:
        raise LookupError(f"it has no list of {config.num_hidden_layers} layers")
    return model, path


def _class_of(config: Any) -> Any:
    """The class with a head that guesses tokens, else the one without."""
    kind = type(config)
    for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModelForCausalLM, transformers.AutoModel):
        if kind in auto._model_mapping:
            return auto
    raise LookupError("it is no language model")


def _on_meta(config: Any, auto: Any, attention: str = "eager") -> Any:
    with torch.device("meta"):
        config.use_cache = False  # a cache is handed over where one is wanted
        model = auto.from_config(config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False)
    return model.eval()


def framed(config: Any, dim: int) -> tuple[bool, Frame]:
    """Whether its layers see the future, and the model without them, so built that here they don't.

    In this order: as it is; as a decoder, if its class can be one; with masks made causal. ValueError where none helps.
    """
    reasons: list[str] = []
    for number, (decoder, masked) in enumerate([(False, False), (True, False), (False, True)]):
        if decoder and "is_decoder" not in config.to_dict():
            continue
        own = deepcopy(config)
        if decoder:
            own.is_decoder = True
        model = _on_meta(own, transformers.AutoModel, REMEMBERING if masked else "eager")
        path = list_of_layers(model, int(config.num_hidden_layers))
        if path is None:
            raise LookupError(f"it has no list of {config.num_hidden_layers} layers")
        frame = seated(model, path)
        frame.masked = masked
        try:
            probe(frame, dim)
        except FAILURES as error:
            reasons.append(str(error) or type(error).__name__)
            continue
        return number > 0, frame
    raise ValueError(reasons[0])
