"""A morphogen blueprint as a model of transformers: `from_pretrained(folder, trust_remote_code=True)`.

This file lies in the folder of every model that has no class of its own in transformers. It needs the package
`morphogen` installed, whose layers it runs. B batch, T tokens, V vocabulary
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from morphogen.blueprint.schema import Blueprint
from morphogen.network import Cache, LanguageModel


class MorphogenConfig(PreTrainedConfig):  # type: ignore[misc]
    """A blueprint as plain data. donors: the configs of other models whose layers it has, by the names that it has for
    them."""

    model_type = "morphogen"
    blueprint: dict[str, Any] | None = None
    donors: dict[str, Any] | None = None
    vocab_size: int = 1
    hidden_size: int = 1
    num_hidden_layers: int = 1


class Remembered:
    """What the model remembers of the sequences it is decoding, as `generate` hands it on."""

    def __init__(self) -> None:
        self.states: Cache = {}
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens put in so far."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequences in another order, as beam search chooses them."""
        for state in self.states.values():
            for name, tensor in state.items():
                state[name] = tensor.index_select(0, beam_idx.to(tensor.device))


@dataclass
class Decoded(ModelOutput):  # type: ignore[misc]
    """loss of `labels`, where there are any; logits (B, T, V); cache, where it is used."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    cache: Remembered | None = None


class MorphogenForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The blueprint's model, with a cache for `generate`."""

    config_class = MorphogenConfig
    base_model_prefix = "model"

    def __init__(self, config: MorphogenConfig) -> None:
        super().__init__(config)
        if config.donors:
            from morphogen.parts.foreign.donors.opened import describe

            for name, told in config.donors.items():
                describe(name, told)
        self.model = LanguageModel(Blueprint.model_validate(config.blueprint))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """All weights are in the folder."""

    @classmethod
    def _supports_default_dynamic_cache(cls, *_: Any) -> bool:
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token embedding."""
        return self.model.emb

    def get_output_embeddings(self) -> None:
        """None: a tied head is the embedding itself, and another is not to be tied."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Remembered | None = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache does not hold yet."""
        seen = 0 if cache is None else cache.seen
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "cache": cache,
            "use_cache": use_cache,
        }

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **others: Any) -> Any:
        return {**super()._update_model_kwargs_for_generation(outputs, model_kwargs, **others), "cache": outputs.cache}

    def _reorder_cache(self, cache: Remembered | None, beam_idx: Tensor) -> Remembered | None:
        if cache is not None:
            cache.reorder_cache(beam_idx)
        return cache

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Remembered | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Decoded:
        """Logits of every token; with `labels` also the mean loss of each token's successor, −100 not counted.

        Sequences cannot be padded before a token of theirs, so that what is generated from cannot be padded at all: a
        model of recurrences and memories has no mask for what came before.
        """
        if attention_mask is not None:
            padded_BT = attention_mask == 0
            decodes = cache is not None or bool(use_cache)
            if bool((padded_BT if decodes else padded_BT[:, :-1] & ~padded_BT[:, 1:]).any()):
                raise ValueError(
                    "attention_mask: got padding before tokens, expected sequences that are whole from their first on"
                )
        if cache is None and use_cache:
            cache = Remembered()
        if cache is None:
            logits_BTV = self.model(input_ids)
        else:
            logits_BTV = self.model.extend(input_ids, cache.states)
            cache.seen += input_ids.shape[1]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return Decoded(loss=loss, logits=logits_BTV, cache=cache)
