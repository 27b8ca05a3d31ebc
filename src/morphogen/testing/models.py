"""Models of drawn blueprints, for tests of whole models.

B batch, T tokens, V vocabulary
"""

import functools
from typing import NamedTuple

import torch

from morphogen.blueprint.schema import Blueprint
from morphogen.network import LanguageModel, assemble, initial_state
from morphogen.parts.attention.kv_policy import Cached, KVPolicy
from morphogen.testing.strategies import VOCAB

TOKENS = 63
FULL, LATENT = KVPolicy(), KVPolicy(kind="latent")


def ids_of(seed: int, tokens: int = TOKENS, batch: int = 2) -> torch.Tensor:
    """Random tokens of the drawn vocabulary.

    Args:
        seed: Of the draw.
        tokens: Of a sequence.
        batch: Sequences.

    Returns:
        Ids of shape (batch, tokens).
    """
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def stirred(blueprint: Blueprint, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Weights as after training: no gain is one, no gate is zero.

    Args:
        blueprint: The architecture.
        seed: Of the draw.
        dtype: Of the tensors.

    Returns:
        The weights by name.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    state = {}
    for name, tensor in initial_state(blueprint, seed).items():
        noise = torch.randn(tensor.shape, generator=generator)
        stir = name.endswith(("eps", "slopes"))
        state[name] = (tensor if stir else tensor * (1 + 0.1 * noise) + 0.02 * noise).to(dtype)
    return state


def logits(blueprint: Blueprint, state: dict[str, torch.Tensor], ids_BT: torch.Tensor) -> torch.Tensor:
    """What a blueprint computes with some weights.

    Args:
        blueprint: The architecture.
        state: Its weights by name.
        ids_BT: Tokens, of shape (batch, tokens).

    Returns:
        Logits of shape (batch, tokens, vocabulary).
    """
    with torch.no_grad():
        logits_BTV: torch.Tensor = assemble(blueprint, state).eval()(ids_BT)
    return logits_BTV


class Known(NamedTuple):
    """Weights of a blueprint, which stay as they are, and what it computes with them."""

    state: dict[str, torch.Tensor]
    logits_BTV: torch.Tensor


def known(blueprint: Blueprint, seed: int, dtype: torch.dtype) -> Known:
    """What `stirred` gives, and the logits of `ids_of(seed)`, computed once for all that is tried of a blueprint.

    In fp32 and fp64 the weights are equal.

    Args:
        blueprint: The architecture.
        seed: Of the weights, and of the tokens.
        dtype: Of the tensors.

    Returns:
        The weights by name, and logits of shape (batch, tokens, vocabulary).
    """
    return _known(blueprint.model_dump_json(), seed, dtype)


@functools.lru_cache(maxsize=128)
def _known(written: str, seed: int, dtype: torch.dtype) -> Known:
    blueprint = Blueprint.model_validate_json(written)
    state = stirred(blueprint, seed, dtype)
    return Known(state, logits(blueprint, state, ids_of(seed)))


def loss_of(model: LanguageModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """What training minimises: the language model's loss and what branches add to it.

    Args:
        model: The model.
        ids_BT: Tokens, of shape (batch, tokens).
    """
    with model.recording() as record:
        logits_BTV = model(ids_BT[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
    auxiliary = record.loss({})
    return loss if auxiliary is None else loss + auxiliary


def uncut(blueprint: Blueprint) -> Blueprint:
    """The same, with caches that keep all there is to see: what others leave out has tests of its own."""
    blocks = [
        block.model_copy(update={"attn": block.attn.model_copy(update={"kv_policy": FULL})})
        if isinstance(block.attn, Cached) and block.attn.kv_policy not in (FULL, LATENT)
        else block
        for block in blueprint.blocks
    ]
    return blueprint.model_copy(update={"blocks": tuple(blocks)})
