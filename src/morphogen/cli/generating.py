"""Text from a checkpoint. What `morphogen generate` calls."""

from pathlib import Path
from typing import NamedTuple

import torch

from morphogen.beside import tokenizer_beside
from morphogen.errors import InputError
from morphogen.inherit.checkpoint import load_checkpoint
from morphogen.network import assemble
from morphogen.training.device import choose_device


class Written(NamedTuple):
    """What follows the prompt, and of how many tokens it is."""

    text: str
    tokens: int


def written(
    path: Path,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Written:
    """What the model in a checkpoint writes on, up to the end of the document.

    InputError for a checkpoint that cannot be read or whose tokenizer is not known, and for numbers out of range;
    DivergedError where the model gives a number that is not finite.
    """
    where = choose_device(device)
    state, blueprint, metadata = load_checkpoint(path, measured=True)
    tokenizer = tokenizer_beside(path, metadata)
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("--prompt: is not text that UTF-8 can hold") from None
    ids_T = tokenizer.encode_batch([prompt])[0].tolist() if prompt else []
    given = [tokenizer.eot, *ids_T]  # as documents begin in training: after the end of another
    model = assemble(blueprint, state).to(where)
    prompt_BT = torch.tensor([given], device=where)
    ids_BT = model.generate(prompt_BT, max_tokens, temperature=temperature, top_k=top_k, seed=seed)
    new = ids_BT[0, len(given) :].tolist()
    if tokenizer.eot in new:
        new = new[: new.index(tokenizer.eot)]
    # a vocabulary that grew has tokens that no tokenizer knows
    return Written(tokenizer.decode([i for i in new if i < tokenizer.vocab_size]), len(new))
