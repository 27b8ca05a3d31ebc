"""Ways into layers of other models, fitted to text instead of starting as they may: ridge regression from the stream
that a lane reads to the stream that its first layer was given in its own model.

B batch, T tokens, D width of what is read, E width of the other model, N tokens of all texts
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.data.spelling import Ids
from morphogen.data.tokenizers import Tokenizer, named
from morphogen.errors import InputError
from morphogen.network import LanguageModel
from morphogen.parts.foreign.donors.donor import Donor
from morphogen.parts.foreign.donors.layers import ForeignLayer
from morphogen.parts.foreign.donors.opened import donor_of
from morphogen.parts.foreign.donors.stems import DonorEmbedding
from morphogen.parts.foreign.foreign_layer import ForeignBranch

#: Characters of one sequence: hardly a model has no places for so few.
PIECE = 200
#: One token in so many measures the fit, and is not fitted to.
HELD_OUT = 5


class Fit(NamedTuple):
    """How well a lane's way in was fitted.

    branch: its name in the model. model, layer: the first layer of the lane. tokens: fitted to. r2: of tokens that were
    not: 1 − Σ(h − W x)² / Σ(h − mean h)²; below 0 where the mean alone would be nearer.
    """

    branch: str
    model: str
    layer: int
    tokens: int
    r2: float


@torch.no_grad()
def calibrate(
    model: LanguageModel, tokenizer: Tokenizer, texts: Iterable[str], *, tokens: int = 4096, ridge: float = 1e-3
) -> list[Fit]:
    """Fits read of every lane, W = argmin Σ ‖h − W x‖² + ridge · N · mean(x²) · ‖W − W₀‖², W₀ being what it was: where
    no text leads, it stays. In place, and lane by lane.

    x is what read is given where a token of ours ends, h the other model's stream before the layer where the last token
    of its own ended. A linear write that is not zero is fitted the other way round, from h to x, so that what a layer
    changes comes back; one that is zero stays so, and the model's function with it.

    Args:
        model: With `foreign` parts. It stays in the mode it was in.
        tokenizer: The model's.
        texts: What is fitted to, read as far as needed.
        tokens: So many at most.
        ridge: Relative to the mean square of what is read.

    Returns:
        How good the fit is, of every lane in order.

    Raises:
        InputError: There is too little text, no such part, or no tokenizer with another model; or a number is out of
            range.
    """
    if tokens < 1:
        raise InputError(f"calibrate: got {tokens} tokens, expected at least 1")
    if not (math.isfinite(ridge) and ridge >= 0.0):
        raise InputError(f"calibrate: got ridge {ridge:g}, expected a finite number of at least 0")
    branches = [(name, module) for name, module in model.named_modules() if isinstance(module, ForeignBranch)]
    if not branches:
        raise InputError("calibrate: the model has no layers of other models")
    pieces, mode = _pieces(texts, tokenizer, tokens), model.training
    model.eval()
    try:
        return [
            _fitted(model, name, branch, n, tokenizer, pieces, ridge)
            for name, branch in branches
            for n in range(len(branch.lanes))
        ]
    finally:
        model.train(mode)


def _fitted(
    model: LanguageModel,
    name: str,
    branch: ForeignBranch,
    n: int,
    tokenizer: Tokenizer,
    pieces: Sequence[str],
    ridge: float,
) -> Fit:
    """One lane."""
    expert = branch.part.experts[branch.lanes[n].first]
    read = branch.get_submodule(f"read.{n}")
    donor = donor_of(expert.model)
    pairs = list(_pairs(model, read, tokenizer, donor, expert.layer, pieces))
    if not pairs:
        raise InputError("calibrate: got text of 0 tokens, expected more")
    x_ND, h_NE = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    held = torch.arange(len(x_ND), device=x_ND.device) % HELD_OUT == 0
    if (fitted := int((~held).sum())) < 2 or not held.any():
        raise InputError(f"calibrate: got text of {len(x_ND)} tokens, expected more")
    way_in = _ridge(read.get_parameter("weight").double(), x_ND[~held], h_NE[~held], ridge)
    off_NE, around_NE = h_NE[held] - x_ND[held] @ way_in.T, h_NE[held] - h_NE[held].mean(0)
    _set(read, way_in)
    if branch.part.adapter == "linear":
        write, root = branch.get_submodule(f"write.{n}"), math.sqrt(h_NE.shape[1])
        way_out = write.get_parameter("weight").double() / root
        if bool(way_out.any()) and branch.lanes[n].after is None:
            _set(write, _ridge(way_out, h_NE[~held], x_ND[~held], ridge) * root)
    return Fit(name, expert.model, expert.layer, fitted, _explained(off_NE, around_NE))


def _explained(off_NE: Tensor, around_NE: Tensor) -> float:
    """1 − Σ off² / Σ around²; where nothing varies, 1 for what is met and else 0."""
    off, around = float(off_NE.square().sum()), float(around_NE.square().sum())
    return 1.0 - off / around if around > 0.0 else float(off == 0.0)


def _ridge(start_ED: Tensor, x_ND: Tensor, h_NE: Tensor, ridge: float) -> Tensor:
    """W, (E, D), of the regression without a constant, drawn to where it starts."""
    gram_DD = x_ND.T @ x_ND
    gram_DD += ridge * gram_DD.trace() / len(gram_DD) * torch.eye(len(gram_DD), dtype=x_ND.dtype, device=x_ND.device)
    wanted_DE = x_ND.T @ (h_NE - x_ND @ start_ED.T)
    found_DE, failed = torch.linalg.solve_ex(gram_DD, wanted_DE)
    if bool(failed) or not bool(found_DE.isfinite().all()):  # nothing but zeros is read, or some channels say the same
        found_DE = torch.linalg.pinv(gram_DD, hermitian=True) @ wanted_DE
    found_ED: Tensor = start_ED + found_DE.T
    return found_ED


def _set(layer: nn.Module, weight: Tensor) -> None:
    own = layer.get_parameter("weight")
    own.copy_(weight.to(own.dtype))


def _pairs(
    model: LanguageModel, read: nn.Module, tokenizer: Tokenizer, donor: Donor, layer: int, pieces: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(what read is given, the other model's stream before the layer), a row for each token, of every piece of text;
    of pieces for which a model has no places, of their halves."""
    theirs, embedding = named(str(donor.folder)), donor.embedding()
    before = [donor.layer(i) for i in range(layer)]
    device, places = model.emb.weight.device, model.blueprint.emb.positions
    waiting = [*reversed(pieces)]
    while waiting:
        piece = waiting.pop()
        ids, ends = _spelled(tokenizer, piece)
        their_ids, their_ends = _spelled(theirs, piece)
        if not ids or not their_ids:
            continue
        h_BTE = None if places and len(ids) > places else _stream(embedding, before, their_ids)
        if h_BTE is None:
            if len(piece) == 1:
                raise InputError(f"calibrate: {donor.source} has no places for {len(their_ids)} tokens")
            half = len(piece) // 2
            waiting += [piece[half:], piece[:half]]
            continue
        last = np.searchsorted(their_ends, ends, side="right") - 1
        rows = np.flatnonzero(last >= 0)
        given: list[Tensor] = []
        hook = read.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
        try:
            model.hidden(torch.tensor(ids, device=device)[None])
        finally:
            hook.remove()
        yield given[0][0, rows].float(), h_BTE[0, last[rows]].to(device)


def _stream(embedding: DonorEmbedding, before: Sequence[ForeignLayer], ids: list[int]) -> Tensor | None:
    """A model's stream behind some layers, (1, T, E); None where it has no places for so many tokens."""
    try:
        h_BTE: Tensor = embedding(torch.tensor(ids)[None])
        for each in before:
            h_BTE = each(h_BTE)
    except (IndexError, RuntimeError, InputError):
        return None
    return h_BTE


def _spelled(tokenizer: Tokenizer, text: str) -> tuple[list[int], Ids]:
    """Ids of a text, and how many bytes of it are behind each."""
    (spelled,) = tokenizer.spell_batch([text])
    return spelled.ids.tolist(), np.cumsum(spelled.n_bytes)


def _pieces(texts: Iterable[str], tokenizer: Tokenizer, tokens: int) -> list[str]:
    """Short texts of about so many tokens in all."""
    found, left = list[str](), tokens
    for text in texts:
        for start in range(0, len(text), PIECE):
            if left <= 0:
                return found
            piece = text[start : start + PIECE]
            left -= len(tokenizer.encode_batch([piece])[0])
            found.append(piece)
    if not found:
        raise InputError("calibrate: got no text")
    return found
