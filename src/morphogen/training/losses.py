"""What training descends on, and what is told of it. B sequences, T targets of a sequence (T1 is T + 1 tokens),
V vocabulary."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from morphogen.experiment import Train
from morphogen.ops.cross_entropy import cross_entropy
from morphogen.parts.contract.branch import Record

#: Entropy is sampled at every so-many-th position.
ENTROPY_STRIDE = 8


class Forward(NamedTuple):
    """One forward pass: the batch, of which a negative id −1 − i is token i, not scored as a target; the logits after
    its first T tokens; the loss of each sequence in nats; and what the branches recorded."""

    ids_BT1: Tensor
    logits_BTV: Tensor
    nats_B: Tensor
    record: Record

    @classmethod
    def of(cls, ids_BT1: Tensor, logits_BTV: Tensor, record: Record) -> "Forward":
        """With the losses that follow."""
        return cls(ids_BT1, logits_BTV, sequence_losses(logits_BTV, ids_BT1[:, 1:]), record)


#: What a step descends on, a scalar that gradients flow from.
Loss = Callable[[Forward], Tensor]


def usual_loss(train: Train) -> Loss:
    """The mean over sequences, and what the branches' records add at the coefficients of `train`."""
    coefficients = {"balance": train.router_lb_coeff, "router_entropy": -train.router_entropy_coeff}

    def loss(forward: Forward) -> Tensor:
        mean, auxiliary = forward.nats_B.mean(), forward.record.loss(coefficients)
        return mean if auxiliary is None else mean + auxiliary

    return loss


def token_ids(ids_BT1: Tensor) -> Tensor:
    """The tokens of a batch, whether they are scored as targets or not."""
    return torch.where(ids_BT1 < 0, -1 - ids_BT1, ids_BT1)


def sequence_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence's targets, in nats, (B,); negative targets are not scored.

    Training descends on the mean over sequences, so that a probe, few of whose targets are scored, has its share.
    """
    nats_N = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return nats_N.view_as(targets_BT).sum(1) / (targets_BT >= 0).sum(1)


def text_loss(nats_B: Tensor, targets_BT: Tensor) -> Tensor:
    """The mean loss of the sequences that are scored throughout; of all where there are none."""
    text_B = (targets_BT >= 0).all(1)
    text_B = text_B | ~text_B.any()
    return (nats_B * text_B).sum() / text_B.sum()


@torch.no_grad()
def entropy(logits_BTV: Tensor) -> Tensor:
    """Mean entropy of the predicted distributions, in nats, at every `ENTROPY_STRIDE`-th position."""
    logp_BTV = torch.log_softmax(logits_BTV[:, ::ENTROPY_STRIDE].float(), -1)
    return -(logp_BTV.exp() * logp_BTV).sum(-1).mean()
