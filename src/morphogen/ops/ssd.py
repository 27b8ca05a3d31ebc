"""The state-space recurrence with one decay per head (Mamba-2), worked on in chunks.

One autograd function with a hand-written backward pass that keeps little and recomputes the rest. Sums run in fp32 at
least, whatever the dtype of the inputs.

B batch, T tokens, H heads, P head width, F = H·P channels, N state size,
Q tokens of a chunk, C chunks of a sequence, R = B·C chunks in all
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from morphogen.ops.autocast import no_autocast
from morphogen.ops.backends import kernel
from morphogen.ops.elementwise import LOG2_E
from morphogen.ops.function import call
from morphogen.ops.recurrent_kernels import SSD

#: Bytes of one array worked on at a time: on a CPU a part of its L2 cache, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**18
DEVICE_TILE_BYTES = 2**28


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_H: Tensor,
    state_BNHP: Tensor | None = None,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """state ← exp(dt·a)·state + dt·b xᵀ; y = state c + d·x. Returns y_BTHP in x's dtype, and the last state_BNHP.

    a: negative. state_BNHP: the one to start from, None for zeros. Within a chunk of Q tokens the recurrence is a
    masked matmul of scores c bᵀ with decays; the decays are exponentials of sums over segments, or of what is as exact,
    so that a strong decay costs no digits. From chunk to chunk it is a recurrence of one step.
    Ref: arXiv 2405.21060.
    """
    fla = kernel((SSD,), x_BTHP.device, x_BTHP.dtype, x_BTHP.shape[1], (*x_BTHP.shape[2:], b_BTN.shape[-1]))
    if fla is not None:
        with no_autocast(x_BTHP.device):
            y_BTHP, last_BNHP = fla(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, state_BNHP)
        return y_BTHP, last_BNHP
    y_BTHP, last_BNHP = call(_SSD, x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, state_BNHP, min(chunk, x_BTHP.shape[1]))
    return y_BTHP, last_BNHP


class _Decays:
    """What a chunk's decays come to, of which log2_RQH are the logarithms to base 2; sums by matmul with triangles.

    Decays between tokens are differences of running sums. Those are kept in twice the digits, as the rounded sum and
    what the rounding left, so that a difference is as exact as the sum of its segment.
    """

    def __init__(self, log2_RQH: Tensor) -> None:
        ones_QQ = log2_RQH.new_ones(log2_RQH.shape[1], log2_RQH.shape[1])
        self.upto_QQ, self.before_QQ = ones_QQ.tril(), ones_QQ.tril(-1)
        wide = torch.float32 if log2_RQH.device.type == "mps" else torch.float64  # that device has no more
        sums_RHQ = log2_RQH.transpose(1, 2).to(wide).cumsum(2)
        self.sums_RHQ = sums_RHQ.to(log2_RQH.dtype)
        self.rest_RHQ = (sums_RHQ - self.sums_RHQ).to(log2_RQH.dtype)
        self.into_RQH = self.sums_RHQ.exp2().transpose(1, 2)  # from before the chunk to after token q
        self.out_RQH = (self.before_QQ.t() @ log2_RQH).exp2_()  # from after token q to the chunk's end
        self.whole_RH = self.into_RQH[:, -1]

    def between(self, rows: slice) -> Tensor:
        """(r, H, Q, Q): the decay from after token j to after token i, for j ≤ i; 1 elsewhere."""
        sums_rHQ, rest_rHQ = self.sums_RHQ[rows], self.rest_RHQ[rows]
        log2_rHQQ = sums_rHQ.unsqueeze(3) - sums_rHQ.unsqueeze(2)
        log2_rHQQ.add_(rest_rHQ.unsqueeze(3)).sub_(rest_rHQ.unsqueeze(2))
        return log2_rHQQ.clamp_max_(0.0).exp2_()

    def between_backward(self, dsum_rHQQ: Tensor) -> Tensor:
        """Gradient of the natural log decays, (r, Q, H), from that of the segments' sums."""
        return (dsum_rHQQ @ self.before_QQ.t()).mul_(self.upto_QQ).sum(2).transpose(1, 2)


def _chunked(x: Tensor, chunk: int, full: torch.dtype) -> Tensor:
    """(B, T, ...) to (R, Q, ...), zeros after the last token."""
    x = x.to(full)
    if missing := -x.shape[1] % chunk:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    return x.reshape(-1, chunk, *x.shape[2:])


class _Chunks:
    """A sequence's inputs in chunks, and what their decays come to."""

    def __init__(
        self,
        x_BTHP: Tensor,
        dt_BTH: Tensor,
        a_H: Tensor,
        b_BTN: Tensor,
        c_BTN: Tensor,
        d_H: Tensor,
        chunk: int,
        full: torch.dtype,
    ) -> None:
        self.x_RQHP, self.dt_RQH, self.b_RQN, self.c_RQN = (
            _chunked(t, chunk, full) for t in (x_BTHP, dt_BTH, b_BTN, c_BTN)
        )
        self.a_H, self.d_H1 = a_H.to(full), d_H.to(full)[:, None]
        self.x_RHQP = self.x_RQHP.transpose(1, 2).contiguous()
        self.decays = _Decays(self.dt_RQH * (self.a_H * LOG2_E))

    def scores(self) -> Tensor:
        """How much of token j's input token i reads but for the decay, (R, Q, Q)."""
        return torch.bmm(self.c_RQN, self.b_RQN.mT).tril_()

    def rows(self) -> Iterator[slice]:
        """As many chunks at a time as their Q×Q matrices fit the cache."""
        count, chunk, heads, _ = self.x_RQHP.shape
        budget = CPU_TILE_BYTES if self.x_RQHP.device.type == "cpu" else DEVICE_TILE_BYTES
        step = max(1, budget // max(1, heads * chunk * chunk * self.x_RQHP.element_size()))
        for start in range(0, count, step):
            yield slice(start, start + step)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTHP: Tensor,
        dt_BTH: Tensor,
        a_H: Tensor,
        b_BTN: Tensor,
        c_BTN: Tensor,
        d_H: Tensor,
        state_BNHP: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        full = torch.promote_types(x_BTHP.dtype, torch.float32)
        batch, length, heads, width = x_BTHP.shape
        size = b_BTN.shape[-1]
        with no_autocast(x_BTHP.device):
            of = _Chunks(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, chunk, full)
            written_RQHP = of.x_RQHP * (of.decays.out_RQH * of.dt_RQH).unsqueeze(-1)
            new_RNF = torch.bmm(of.b_RQN.mT, written_RQHP.flatten(2))
            start = of.x_RQHP.new_zeros(batch, size, heads, width) if state_BNHP is None else state_BNHP.to(full)
            states_BCNHP, last_BNHP = _recur(
                new_RNF.view(batch, -1, size, heads, width), of.decays.whole_RH.view(batch, -1, heads), start
            )
            y_RQHP = torch.bmm(of.c_RQN, states_BCNHP.view(-1, size, heads * width)).view(of.x_RQHP.shape)
            scores_RQQ = of.scores()
            for rows in of.rows():
                m_rHQQ = of.decays.between(rows).mul_(scores_RQQ[rows].unsqueeze(1)).mul_(_sent(of.dt_RQH[rows]))
                m_rHQQ.diagonal(dim1=2, dim2=3).add_(of.d_H1)
                within_rHQP = m_rHQQ @ of.x_RHQP[rows]
                y_rQHP, into_rQH1 = y_RQHP[rows], of.decays.into_RQH[rows].unsqueeze(-1)
                torch.addcmul(within_rHQP.transpose(1, 2), y_rQHP, into_rQH1, out=y_rQHP)
        ctx.save_for_backward(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, states_BCNHP)
        ctx.chunk, ctx.from_state = chunk, state_BNHP is not None
        y_BTHP = y_RQHP.view(batch, -1, heads, width)[:, :length].to(x_BTHP.dtype)
        return y_BTHP, last_BNHP

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTHP: Tensor, dlast_BNHP: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, states_BCNHP = ctx.saved_tensors
        full, chunk = states_BCNHP.dtype, ctx.chunk
        batch, length = dt_BTH.shape[:2]
        with no_autocast(x_BTHP.device):
            of = _Chunks(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, chunk, full)
            gradients = _SSDGradients(of, _chunked(dy_BTHP, chunk, full), states_BCNHP)
            gradients.of_reading()
            dstart_BNHP = gradients.of_passing_on(dlast_BNHP.to(full))
            gradients.of_writing()
            gradients.within_chunks()
            gradients.of_decays()

        def whole(grad: Tensor, like: Tensor) -> Tensor:
            return grad.view(batch, -1, *like.shape[2:])[:, :length].to(like.dtype)

        return (
            whole(gradients.dx_RQHP, x_BTHP),
            whole(gradients.ddt_RQH, dt_BTH),
            gradients.da_H.to(a_H.dtype),
            whole(gradients.db_RQN, b_BTN),
            whole(gradients.dc_RQN, c_BTN),
            gradients.dd_H.to(d_H.dtype),
            dstart_BNHP if ctx.from_state else None,
            None,
        )


class _SSDGradients:
    """The backward pass of a sequence in chunks: its steps, called in the order in which they stand.

    Fresh memory is dear, so that arrays which have been read take what comes later.
    """

    def __init__(self, of: _Chunks, dy_RQHP: Tensor, states_BCNHP: Tensor) -> None:
        self.of, self.dy_RQHP, self.states_BCNHP = of, dy_RQHP, states_BCNHP
        self.batch, _, size, self.heads, width = states_BCNHP.shape
        self.states_RNF = states_BCNHP.view(-1, size, self.heads * width)

    def of_reading(self) -> None:
        """What tokens read from the state before their chunk."""
        of = self.of
        self.dread_RQHP = self.dy_RQHP * of.decays.into_RQH.unsqueeze(-1)
        dread_RQF = self.dread_RQHP.flatten(2)
        self.dc_RQN = torch.bmm(dread_RQF, self.states_RNF.mT)
        self.dstates_BCNHP = torch.bmm(of.c_RQN.mT, dread_RQF).view(self.states_BCNHP.shape)
        self.read_RQHP = torch.bmm(of.c_RQN, self.states_RNF).view(of.x_RQHP.shape)
        self.dinto_RQH = self.read_RQHP.mul_(self.dread_RQHP).sum(-1)

    def of_passing_on(self, dlast_BNHP: Tensor) -> Tensor:
        """The recurrence from chunk to chunk. Returns the gradient of the state to start from."""
        whole_BCH = self.of.decays.whole_RH.view(self.batch, -1, self.heads)
        dnew_BCNHP, dwhole_BCH, dstart_BNHP = _recur_backward(
            self.dstates_BCNHP, dlast_BNHP, self.states_BCNHP, whole_BCH
        )
        self.dnew_RNF = dnew_BCNHP.view(self.states_RNF.shape)
        self.dinto_RQH[:, -1] += dwhole_BCH.view(-1, self.heads)
        return dstart_BNHP

    def of_writing(self) -> None:
        """What tokens add to the state after their chunk."""
        of, decays = self.of, self.of.decays
        share_RQH = decays.out_RQH * of.dt_RQH
        written_RQHP = torch.mul(of.x_RQHP, share_RQH.unsqueeze(-1), out=self.read_RQHP)
        self.db_RQN = torch.bmm(written_RQHP.flatten(2), self.dnew_RNF.mT)
        dwritten_RQHP = torch.bmm(of.b_RQN, self.dnew_RNF).view(of.x_RQHP.shape)
        dshare_RQH = torch.mul(dwritten_RQHP, of.x_RQHP, out=self.dread_RQHP).sum(-1)
        self.dlog_RQH = decays.upto_QQ.t() @ self.dinto_RQH + decays.before_QQ @ (dshare_RQH * share_RQH)
        self.ddt_RQH = dshare_RQH.mul_(decays.out_RQH)
        self.dx_RQHP = dwritten_RQHP.mul_(share_RQH.unsqueeze(-1))

    def within_chunks(self) -> None:
        """What tokens read from others of their chunk, and from themselves."""
        of = self.of
        scores_RQQ, self.dd_H = of.scores(), torch.zeros_like(of.a_H)
        dscores_RQQ = torch.empty_like(scores_RQQ)
        for rows in of.rows():
            decay_rHQQ, dt_rH1Q = of.decays.between(rows), _sent(of.dt_RQH[rows])
            k_rHQQ = decay_rHQQ * scores_RQQ[rows].unsqueeze(1)
            m_rHQQ = k_rHQQ * dt_rH1Q
            m_rHQQ.diagonal(dim1=2, dim2=3).add_(of.d_H1)
            dy_rHQP = self.dy_RQHP[rows].transpose(1, 2).contiguous()
            self.dx_RQHP[rows] += (m_rHQQ.mT @ dy_rHQP).transpose(1, 2)
            dm_rHQQ = torch.matmul(dy_rHQP, of.x_RHQP[rows].mT, out=m_rHQQ)
            self.dd_H += dm_rHQQ.diagonal(dim1=2, dim2=3).sum((0, 2))
            dscores_RQQ[rows] = decay_rHQQ.mul_(dt_rH1Q).mul_(dm_rHQQ).sum(1)
            dm_rHQQ.mul_(k_rHQQ)
            self.ddt_RQH[rows] += dm_rHQQ.sum(2).transpose(1, 2)
            self.dlog_RQH[rows] += of.decays.between_backward(dm_rHQQ.mul_(dt_rH1Q))
        dscores_RQQ.tril_()
        self.dc_RQN.baddbmm_(dscores_RQQ, of.b_RQN)
        self.db_RQN.baddbmm_(dscores_RQQ.mT, of.c_RQN)

    def of_decays(self) -> None:
        """Steps and rates, of which the decays are made."""
        self.ddt_RQH.addcmul_(self.dlog_RQH, self.of.a_H)
        self.da_H = (self.dlog_RQH * self.of.dt_RQH).sum((0, 1))


def _sent(dt_rQH: Tensor) -> Tensor:
    """The step of the token a Q×Q matrix's column stands for, (r, H, 1, Q)."""
    return dt_rQH.transpose(1, 2).unsqueeze(2)


def _recur(new_BCNHP: Tensor, whole_BCH: Tensor, start_BNHP: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and the one after the last."""
    states_BCNHP = torch.empty_like(new_BCNHP)
    state_BNHP = start_BNHP
    for i in range(new_BCNHP.shape[1]):
        states_BCNHP[:, i] = state_BNHP
        state_BNHP = torch.addcmul(new_BCNHP[:, i], state_BNHP, whole_BCH[:, i, None, :, None])
    return states_BCNHP, state_BNHP


def _recur_backward(
    dstates_BCNHP: Tensor, dlast_BNHP: Tensor, states_BCNHP: Tensor, whole_BCH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what each chunk adds, of the log of each chunk's whole decay, and of the state to start from."""
    dnew_BCNHP = torch.empty_like(dstates_BCNHP)
    dstate_BNHP = dlast_BNHP
    for i in reversed(range(dstates_BCNHP.shape[1])):
        dnew_BCNHP[:, i] = dstate_BNHP
        dstate_BNHP = torch.addcmul(dstates_BCNHP[:, i], dstate_BNHP, whole_BCH[:, i, None, :, None])
    dwhole_BCH = (dnew_BCNHP * states_BCNHP).sum((2, 4)).mul_(whole_BCH)
    return dnew_BCNHP, dwhole_BCH, dstate_BNHP
