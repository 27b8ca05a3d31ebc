"""Training that does not forget: what `train.anchoring` asks for, hooked into a trainer's batches and loss.

B sequences, T1 tokens of a sequence: one more than there are targets.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from morphogen import cost
from morphogen.data.mixture import Mixture, Trained
from morphogen.data.prepare import PreparedData
from morphogen.experiment import AnchoringSection
from morphogen.growth.anchoring import Buffer, Ids, Rehearsal, Teacher, divergence, sampled
from morphogen.inherit.descent import Moments
from morphogen.inherit.splice import StateDict
from morphogen.training.losses import Forward, Loss, token_ids
from morphogen.training.saved import Saved
from morphogen.training.trainer import Batches, Trainer

#: Said where `freeze_expand_tune` has nothing to do.
NOTHING_NEW = "freeze_expand_tune: nothing is new, so that nothing is frozen"
NOTHING_OLD = "freeze_expand_tune: nothing is old, so that nothing is frozen"
#: Said where `rehearsal` knows nothing of what lies behind.
NOTHING_KEPT = "rehearsal: nothing is kept of the text behind these weights; what is trained on from here is rehearsed"


class Past(Protocol):
    """The sequences that lie behind some weights, as far as anybody can tell. sequences: how many."""

    sequences: int

    def rows(self, count: int, seed: int) -> list[Ids]:
        """At most so many of them, each as likely as another."""


class Remembered:
    """Those that an earlier training kept to rehearse from (`Anchoring.state`)."""

    def __init__(self, saved: Saved) -> None:
        self._rows: list[Ids] = list(saved.tensors["rows"].numpy()) if "rows" in saved.tensors else []
        self.sequences: int = saved.plain["seen"]

    def rows(self, count: int, seed: int) -> list[Ids]:
        """As `Past`: what it kept is a uniform sample already."""
        chosen = _rng(seed, 1).choice(len(self._rows), min(count, len(self._rows)), replace=False)
        return [self._rows[i] for i in np.sort(chosen)]


class Earlier:
    """The sequences that lie behind some weights, as far as anybody can tell: what `runs` have read of this text."""

    def __init__(self, prepared: PreparedData, runs: Iterable[Trained] = ()) -> None:
        self.prepared, self.runs = prepared, [run for run in runs if run.steps]
        self.sequences = prepared.step_sequences * sum(run.steps for run in self.runs)

    def rows(self, count: int, seed: int) -> list[Ids]:
        """At most so many of them, each as likely as another; those of a probe left out."""
        per_step = self.prepared.step_sequences
        chosen = np.sort(_rng(seed, 1).choice(self.sequences, min(count, self.sequences), replace=False))
        rows, done = list[Ids](), 0
        for run in self.runs:
            mixture = Mixture(self.prepared, run.seed)
            mine = chosen[(chosen >= done) & (chosen < done + run.steps * per_step)] - done
            for step in np.unique(mine // per_step).tolist():
                batch_BT1 = mixture.batch(run.first + step)
                rows += [batch_BT1[i] for i in (mine[mine // per_step == step] % per_step).tolist()]
            done += run.steps * per_step
        return [row for row in rows if (row >= 0).all()]


class Anchoring:
    """One training's means against forgetting.

    It puts itself around the trainer's loss when it is made, and has to be put around its batches (`batches`); it is
    told of every growth (`grown`). flops: that it has cost so far, the teacher's forward passes and the sampling of
    sequences.
    """

    def __init__(
        self, section: AnchoringSection, trainer: Trainer, *, seq_len: int, seed: int, end_of_text: int
    ) -> None:
        self.section, self.trainer, self.seq_len, self.seed = section, trainer, seq_len, seed
        self.end_of_text = end_of_text
        self.flops = 0.0
        self.rehearsal: Rehearsal | None = None
        self.teacher: Teacher | None = None
        self._followed = self._sampled = trainer.step
        if (asked := section.rehearsal) is not None:
            buffer = Buffer(max(1, asked.buffer_tokens // (seq_len + 1)))
            self.rehearsal = Rehearsal(asked.share, buffer, seed, takes_in=asked.source == "data")
        if section.self_distillation is not None:
            self.teacher = Teacher(trainer.model, section.self_distillation.decay)
            trainer.beside = self.teacher.tensors()
        trainer.loss = self.loss(trainer.loss)

    @classmethod
    def of(cls, section: AnchoringSection, trainer: Trainer, prepared: PreparedData, seed: int) -> Self | None:
        """Of a training on this text; None where nothing is asked for."""
        if not section.asks:
            return None
        return cls(section, trainer, seq_len=prepared.seq_len, seed=seed, end_of_text=prepared.eot)

    # --------------------------------------------------------------------------------------- what lies behind

    def begin(self, earlier: Past | None, *, new: Mapping[str, Tensor]) -> str:
        """Before the first step of weights that were trained before; why nothing is frozen, in words, if so.

        earlier: on what, where anybody can tell. new: where the entries of a parameter are new.
        """
        rehearsal = self.rehearsal
        if rehearsal is not None and not rehearsal.takes_in:
            self._sample()
        elif rehearsal is not None and earlier is not None:
            buffer = rehearsal.buffer
            rows = earlier.rows(buffer.capacity, self.seed)
            buffer.offer((row for row in rows if len(row) == self.seq_len + 1), _rng(self.seed))
            buffer.seen = max(buffer.seen, earlier.sequences)
        return self._freeze(new)

    @property
    def unfilled(self) -> bool:
        """Whether it rehearses from data, and has none yet."""
        return self.rehearsal is not None and self.rehearsal.takes_in and not self.rehearsal.buffer.rows

    def grown(self, moments: Moments, carry: Callable[[StateDict], StateDict]) -> str:
        """After the trainer's model has grown; why nothing is frozen, in words, if so.

        moments: that the trainer went on with, which say what is new. carry: the splice that the weights went through;
        the teacher's go the same way.
        """
        if self.teacher is not None:
            self.teacher.grow(self.trainer.model, carry)
            self.trainer.beside = self.teacher.tensors()
        return self._freeze(moments.fresh)

    def _freeze(self, new: Mapping[str, Tensor]) -> str:
        asked, updater = self.section.freeze_expand_tune, self.trainer.updater
        if asked is None:
            return ""
        total = sum(parameter.numel() for parameter in updater.parameters)
        names = {name for name, parameter in self.trainer.model.named_parameters() if parameter.requires_grad}
        fresh = sum(int(torch.count_nonzero(mask)) for name, mask in new.items() if name in names)
        if fresh == 0:
            return NOTHING_NEW
        if fresh == total:
            return NOTHING_OLD
        some = {name: mask for name, mask in new.items() if name in names and bool(mask.any())}
        updater.hold(some, asked.freeze_steps, asked.tune_steps)
        return ""

    # ----------------------------------------------------------------------------------------------- the hooks

    def batches(self, fresh: Batches) -> Batches:
        """The same batches with old sequences among the new. Each step is asked for once, and in order."""

        def mixed(step: int) -> Ids:
            self.settle()
            return fresh(step) if self.rehearsal is None else self.rehearsal.mixed(step, fresh(step))

        return mixed

    def following(self, fresh: Batches) -> Batches:
        """The same batches, of text among which nothing is rehearsed, while the teacher goes along. As `batches`."""

        def followed(step: int) -> Ids:
            self._follow()
            return fresh(step)

        return followed

    def _follow(self) -> None:
        """The teacher takes in the last step."""
        if self.teacher is not None and self._followed < self.trainer.step:
            self.teacher.follow(self.trainer.model)
        self._followed = self.trainer.step

    def settle(self) -> None:
        """What is due between two steps: the teacher takes in the last one, and new sequences are sampled."""
        self._follow()
        step = self.trainer.step
        asked = self.section.rehearsal
        every = asked.every if asked is not None and asked.source == "generations" else None
        if every is not None and step % every == 0 and self._sampled < step:
            self._sample()

    def _sample(self) -> None:
        """The model as it is now samples as many sequences as are kept."""
        asked, rehearsal, step = self.section.rehearsal, self.rehearsal, self.trainer.step
        assert asked is not None
        assert rehearsal is not None
        length, count, rng = self.seq_len + 1, rehearsal.buffer.capacity, _rng(self.seed, step)
        drawn = sampled(
            self.trainer.model, self.end_of_text, length, count, asked.temperature, int(rng.integers(2**62))
        )
        rehearsal.buffer.offer(drawn, rng)
        self.flops += count * self.seq_len * self._forward_flops()
        self._sampled = step

    def loss(self, usual: Loss) -> Loss:
        """What training descends on besides, added to the usual."""

        def loss(forward: Forward) -> Tensor:
            asked, teacher = self.section.self_distillation, self.teacher
            if asked is None or teacher is None:
                return usual(forward)
            ids_BT = token_ids(forward.ids_BT1)[:, :-1]
            with self.trainer.precision():
                taught_BTV = teacher.logits(ids_BT)
            self.flops += ids_BT.numel() * self._forward_flops()
            kl = divergence(taught_BTV, forward.logits_BTV, asked.temperature, asked.direction)
            return usual(forward) + asked.weight * asked.temperature**2 * kl

        return loss

    def _forward_flops(self) -> float:
        """Of a token, outside training."""
        return cost.total(self.trainer.model.blueprint, self.seq_len).flops

    # ------------------------------------------------------------------------------------------ saving, going on

    def state(self) -> Saved:
        """All that it needs to go on from here bit for bit; what is held is in the optimizer's."""
        tensors: dict[str, Tensor] = {}
        seen = 0
        if self.teacher is not None:
            tensors |= {f"teacher/{name}": tensor for name, tensor in self.teacher.state().items()}
        if self.rehearsal is not None:
            buffer = self.rehearsal.buffer
            seen = buffer.seen
            tensors |= {"rows": torch.from_numpy(np.stack(buffer.rows))} if buffer.rows else {}
        source = None if self.section.rehearsal is None else self.section.rehearsal.source
        plain = {"followed": self._followed, "sampled": self._sampled, "seen": seen, "flops": self.flops}
        return Saved(tensors, {**plain, "source": source})

    def restore(self, saved: Saved) -> None:
        """Goes on from what `state` gave, with a trainer that already does."""
        plain = saved.plain
        self._followed, self._sampled, self.flops = plain["followed"], plain["sampled"], plain["flops"]
        if self.teacher is not None:
            prefix = "teacher/"
            theirs = {n.removeprefix(prefix): x for n, x in saved.tensors.items() if n.startswith(prefix)}
            self.teacher.restore(self.trainer.model, theirs)
            self.trainer.beside = self.teacher.tensors()
        if self.rehearsal is not None:
            rows = saved.tensors["rows"].numpy() if "rows" in saved.tensors else ()
            self.rehearsal.buffer.restore(rows, plain["seen"])


def _rng(seed: int, step: int = 0) -> np.random.Generator:
    """Of what is drawn outside of steps; unlike that of any step's batch."""
    return np.random.default_rng(np.random.SeedSequence((seed, step), spawn_key=(1,)))
