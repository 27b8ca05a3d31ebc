"""Means against forgetting: a buffer of old text, sequences that a model samples itself, and a teacher that it stays
near. The trainer's side of them is in `training/anchored.py`.

B sequences, T1 tokens of a sequence (T + 1), V vocabulary
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphogen.inherit.splice import StateDict
from morphogen.network import LanguageModel, assemble

Ids = NDArray[np.int64]


class Buffer:
    """Sequences of which each that was offered is as likely to be here as another; none is here twice.

    Reservoir sampling (Vitter's algorithm R). What equals a sequence that is here does not count as offered. seen: how
    many were offered.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.seen = 0
        self.rows: list[Ids] = []
        self._digests: list[bytes] = []
        self._here: set[bytes] = set()

    def offer(self, rows: Iterable[Ids], rng: np.random.Generator) -> None:
        """Takes in some of these sequences, each of shape (T1,)."""
        for row in rows:
            digest = _digest(row)
            if digest in self._here:
                continue
            self.seen += 1
            if len(self.rows) < self.capacity:
                self.rows.append(np.array(row))
                self._digests.append(digest)
                self._here.add(digest)
            elif (place := int(rng.integers(self.seen))) < self.capacity:
                self._here.remove(self._digests[place])
                self.rows[place], self._digests[place] = np.array(row), digest
                self._here.add(digest)

    def draw(self, count: int, rng: np.random.Generator) -> list[Ids]:
        """So many different ones, or all where there are fewer."""
        chosen = rng.choice(len(self.rows), min(count, len(self.rows)), replace=False)
        return [self.rows[i] for i in chosen.tolist()]

    def restore(self, rows: Iterable[Ids], seen: int) -> None:
        """Goes on with these sequences, in this order, when so many had been offered."""
        self.rows = [np.array(row) for row in rows]
        self._digests = [_digest(row) for row in self.rows]
        self._here = set(self._digests)
        self.seen = seen


def _digest(row: Ids) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row, dtype=np.int64).tobytes(), digest_size=16).digest()


class Rehearsal:
    """Mixes old sequences into batches. The same for a step whatever was asked for before, but for what is buffered.

    share: of a batch's sequences of text. takes_in: whether the batches' own sequences are kept to be rehearsed later.
    """

    def __init__(self, share: float, buffer: Buffer, seed: int, *, takes_in: bool) -> None:
        self.share, self.buffer, self.seed, self.takes_in = share, buffer, seed, takes_in

    def mixed(self, step: int, fresh_BT1: Ids) -> Ids:
        """The batch of a step, in which old sequences stand in the place of some.

        Those that are given up are drawn evenly among the sequences of text, which are scored throughout; a probe's
        are left alone. Only what was not given up is kept.
        """
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, step)))
        text = np.flatnonzero((fresh_BT1 >= 0).all(1))
        due = math.floor((step + 1) * self.share * len(text)) - math.floor(step * self.share * len(text))
        old = self.buffer.draw(min(due, len(text)), rng)
        places = np.sort(rng.choice(text, len(old), replace=False))
        if self.takes_in:
            self.buffer.offer((fresh_BT1[i] for i in np.setdiff1d(text, places)), rng)
        if not old:
            return fresh_BT1
        out_BT1 = fresh_BT1.copy()
        out_BT1[places] = np.stack(old)
        return out_BT1


def sampled(
    model: LanguageModel, first: int, length: int, count: int, temperature: float, seed: int, at_once: int = 32
) -> list[Ids]:
    """So many sequences of `length` tokens that a model samples, each after the token `first`, which it begins with."""
    rows: list[Ids] = []
    for k in range(0, count, at_once):
        prompts = torch.full((min(at_once, count - k), 1), first, device=model.emb.weight.device)
        drawn = model.generate(prompts, length - 1, temperature=temperature, seed=seed + k)
        rows += list(drawn.cpu().numpy().astype(np.int64))
    return rows


def divergence(
    teacher_BTV: Tensor, student_BTV: Tensor, temperature: float, direction: Literal["forward", "reverse"]
) -> Tensor:
    """Mean over tokens of the divergence of two distributions softmax(logits / temperature), in nats; a scalar.

    forward: KL(teacher ‖ student) = Σ_v p_v·(ln p_v − ln q_v) with p the teacher's, q the student's; reverse: the
    other way round. In fp32 at least; the length of a sequence and the number of sequences change nothing.
    """
    logs = [logits.to(torch.promote_types(logits.dtype, torch.float32)) for logits in (teacher_BTV, student_BTV)]
    logp_BTV, logq_BTV = ((logits / temperature).log_softmax(-1) for logits in logs)
    if direction == "reverse":
        logp_BTV, logq_BTV = logq_BTV, logp_BTV
    return (logp_BTV.exp() * (logp_BTV - logq_BTV)).sum(-1).mean()


class Teacher:
    """An average of a model's weights: θ ← decay·θ + (1 − decay)·model, from a copy of it on. It never trains."""

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self.decay = decay
        self.model = _still(copy.deepcopy(model))

    @torch.no_grad()
    def follow(self, student: LanguageModel) -> None:
        """Takes in the weights of the model; what is no parameter, such as a router's bias, becomes as there."""
        mine: list[Tensor] = list(self.model.parameters())
        theirs = [parameter.detach() for parameter in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - self.decay)
        for own, other in zip(self.model.buffers(), student.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def logits(self, ids_BT: Tensor) -> Tensor:
        """(B, T, V), as outside training."""
        out: Tensor = self.model(ids_BT)
        return out

    def grow(self, student: LanguageModel, carry: Callable[[StateDict], StateDict]) -> None:
        """Becomes what the model has become. carry: the splice that the model's weights went through."""
        grown = assemble(student.blueprint, carry(self.model.state_dict()))
        self.model = _still(grown.to(student.emb.weight.device))

    def tensors(self) -> list[Tensor]:
        """All that it takes up."""
        return [*self.model.parameters(), *self.model.buffers()]

    def state(self) -> dict[str, Tensor]:
        """Its weights."""
        return dict(self.model.state_dict())

    def restore(self, student: LanguageModel, state: Mapping[str, Tensor]) -> None:
        """Becomes what it was when `state` was taken, of a model of the student's architecture."""
        own = {name: tensor.clone() for name, tensor in state.items()}
        self.model = _still(assemble(student.blueprint, own).to(student.emb.weight.device))


def _still(model: LanguageModel) -> LanguageModel:
    model.recompute = False
    return model.eval().requires_grad_(False)
