"""State-space recurrences over a sequence: one decay per head (Mamba-2), or one per channel and state (Mamba).

Each is one autograd function with a hand-written backward pass that keeps little and recomputes the rest. Sums run in
fp32 at least, whatever the dtype of the inputs.

B batch, T tokens, H heads, P head width, F = H·P channels, N state size,
Q tokens of a chunk, C chunks of a sequence, R = B·C chunks in all
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from morphogen.ops.autocast import no_autocast
from morphogen.ops.elementwise import LOG2_E

#: Bytes of one array worked on at a time: on a CPU a part of its L2 cache, elsewhere enough to fill the device.
CPU_TILE_BYTES = 2**18
DEVICE_TILE_BYTES = 2**28


def _fitting(row_bytes: int, device: torch.device) -> int:
    """How many rows of that size to work on at a time."""
    return max(1, (CPU_TILE_BYTES if device.type == "cpu" else DEVICE_TILE_BYTES) // max(1, row_bytes))


# ----------------------------------------------------------------------------------- scalar decay per head (SSD)


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
    y_BTHP, last_BNHP = _SSD.apply(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, d_H, state_BNHP, min(chunk, x_BTHP.shape[1]))  # type: ignore[no-untyped-call]
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
            x_RQHP, dt_RQH, b_RQN, c_RQN = (_chunked(t, chunk, full) for t in (x_BTHP, dt_BTH, b_BTN, c_BTN))
            d_H1, x_RHQP = d_H.to(full)[:, None], x_RQHP.transpose(1, 2).contiguous()
            decays = _Decays(dt_RQH * (a_H.to(full) * LOG2_E))
            written_RQHP = x_RQHP * (decays.out_RQH * dt_RQH).unsqueeze(-1)
            new_RNF = torch.bmm(b_RQN.mT, written_RQHP.flatten(2))
            start = x_RQHP.new_zeros(batch, size, heads, width) if state_BNHP is None else state_BNHP.to(full)
            states_BCNHP, last_BNHP = _recur(
                new_RNF.view(batch, -1, size, heads, width), decays.whole_RH.view(batch, -1, heads), start
            )
            y_RQHP = torch.bmm(c_RQN, states_BCNHP.view(-1, size, heads * width)).view(x_RQHP.shape)
            scores_RQQ = torch.bmm(c_RQN, b_RQN.mT).tril_()
            for rows in _rows(x_RQHP):
                m_rHQQ = decays.between(rows).mul_(scores_RQQ[rows].unsqueeze(1)).mul_(_sent(dt_RQH[rows]))
                m_rHQQ.diagonal(dim1=2, dim2=3).add_(d_H1)
                within_rHQP = m_rHQQ @ x_RHQP[rows]
                y_rQHP, into_rQH1 = y_RQHP[rows], decays.into_RQH[rows].unsqueeze(-1)
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
        batch, length, heads, width = x_BTHP.shape
        size = b_BTN.shape[-1]
        with no_autocast(x_BTHP.device):
            x_RQHP, dt_RQH, b_RQN, c_RQN, dy_RQHP = (
                _chunked(t, chunk, full) for t in (x_BTHP, dt_BTH, b_BTN, c_BTN, dy_BTHP)
            )
            states_RNF = states_BCNHP.view(-1, size, heads * width)
            d_H1, x_RHQP = d_H.to(full)[:, None], x_RQHP.transpose(1, 2).contiguous()
            decays = _Decays(dt_RQH * (a_H.to(full) * LOG2_E))
            # what is read from the state before the chunk
            dread_RQHP = dy_RQHP * decays.into_RQH.unsqueeze(-1)
            dread_RQF = dread_RQHP.flatten(2)
            dc_RQN = torch.bmm(dread_RQF, states_RNF.mT)
            dstates_BCNHP = torch.bmm(c_RQN.mT, dread_RQF).view(states_BCNHP.shape)
            read_RQHP = torch.bmm(c_RQN, states_RNF).view(x_RQHP.shape)
            dinto_RQH = read_RQHP.mul_(dread_RQHP).sum(-1)
            # the recurrence from chunk to chunk
            whole_BCH = decays.whole_RH.view(batch, -1, heads)
            dnew_BCNHP, dwhole_BCH, dstart_BNHP = _recur_backward(
                dstates_BCNHP, dlast_BNHP.to(full), states_BCNHP, whole_BCH
            )
            # what the chunk adds to the state
            dnew_RNF = dnew_BCNHP.view(-1, size, heads * width)
            share_RQH = decays.out_RQH * dt_RQH
            written_RQHP = torch.mul(x_RQHP, share_RQH.unsqueeze(-1), out=read_RQHP)
            db_RQN = torch.bmm(written_RQHP.flatten(2), dnew_RNF.mT)
            dwritten_RQHP = torch.bmm(b_RQN, dnew_RNF).view(x_RQHP.shape)
            dshare_RQH = torch.mul(dwritten_RQHP, x_RQHP, out=dread_RQHP).sum(-1)
            dinto_RQH[:, -1] += dwhole_BCH.view(-1, heads)
            dlog_RQH = decays.upto_QQ.t() @ dinto_RQH + decays.before_QQ @ (dshare_RQH * share_RQH)
            ddt_RQH = dshare_RQH.mul_(decays.out_RQH)
            dx_RQHP = dwritten_RQHP.mul_(share_RQH.unsqueeze(-1))
            # within the chunk
            scores_RQQ, dd_H = torch.bmm(c_RQN, b_RQN.mT).tril_(), torch.zeros_like(a_H, dtype=full)
            dscores_RQQ = torch.empty_like(scores_RQQ)
            for rows in _rows(x_RQHP):
                decay_rHQQ, dt_rH1Q = decays.between(rows), _sent(dt_RQH[rows])
                k_rHQQ = decay_rHQQ * scores_RQQ[rows].unsqueeze(1)
                m_rHQQ = k_rHQQ * dt_rH1Q
                m_rHQQ.diagonal(dim1=2, dim2=3).add_(d_H1)
                dy_rHQP = dy_RQHP[rows].transpose(1, 2).contiguous()
                dx_RQHP[rows] += (m_rHQQ.mT @ dy_rHQP).transpose(1, 2)
                dm_rHQQ = torch.matmul(dy_rHQP, x_RHQP[rows].mT, out=m_rHQQ)
                dd_H += dm_rHQQ.diagonal(dim1=2, dim2=3).sum((0, 2))
                dscores_RQQ[rows] = decay_rHQQ.mul_(dt_rH1Q).mul_(dm_rHQQ).sum(1)
                dm_rHQQ.mul_(k_rHQQ)
                ddt_RQH[rows] += dm_rHQQ.sum(2).transpose(1, 2)
                dlog_RQH[rows] += decays.between_backward(dm_rHQQ.mul_(dt_rH1Q))
            dscores_RQQ.tril_()
            dc_RQN.baddbmm_(dscores_RQQ, b_RQN)
            db_RQN.baddbmm_(dscores_RQQ.mT, c_RQN)
            ddt_RQH.addcmul_(dlog_RQH, a_H.to(full))
            da_H = (dlog_RQH * dt_RQH).sum((0, 1))

        def whole(grad: Tensor, like: Tensor) -> Tensor:
            return grad.view(batch, -1, *like.shape[2:])[:, :length].to(like.dtype)

        return (
            whole(dx_RQHP, x_BTHP),
            whole(ddt_RQH, dt_BTH),
            da_H.to(a_H.dtype),
            whole(db_RQN, b_BTN),
            whole(dc_RQN, c_BTN),
            dd_H.to(d_H.dtype),
            dstart_BNHP if ctx.from_state else None,
            None,
        )


def _sent(dt_rQH: Tensor) -> Tensor:
    """The step of the token a Q×Q matrix's column stands for, (r, H, 1, Q)."""
    return dt_rQH.transpose(1, 2).unsqueeze(2)


def _rows(x_RQHP: Tensor) -> Iterator[slice]:
    """As many chunks at a time as their Q×Q matrices fit the cache."""
    count, chunk, heads, _ = x_RQHP.shape
    step = _fitting(heads * chunk * chunk * x_RQHP.element_size(), x_RQHP.device)
    for start in range(0, count, step):
        yield slice(start, start + step)


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


# ----------------------------------------------------------------------------- a decay per channel and state (S6)


def selective_scan(
    x_BTF: Tensor,
    dt_BTF: Tensor,
    a_NF: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    d_F: Tensor,
    state_BNF: Tensor | None = None,
    tile: int = 32,
) -> tuple[Tensor, Tensor]:
    """state ← exp(dt·a)·state + dt·b x; y = Σ_n c[n]·state[n] + d·x. Returns y_BTF, in x's dtype, and the last state.

    a: negative. state_BNF: the one to start from, None for zeros. A loop over the tokens; kept for the backward pass
    is one state every `tile` tokens, the others are computed again. Ref: arXiv 2312.00752.
    """
    y_BTF, last_BNF = _SelectiveScan.apply(x_BTF, dt_BTF, a_NF, b_BTN, c_BTN, d_F, state_BNF, tile)  # type: ignore[no-untyped-call]
    return y_BTF, last_BNF


class _Room:
    """Memory for one array of each tile in turn, (B, t, N, F), and views of it token by token.

    Fresh memory would cost as much as the arithmetic, and views made anew as a tenth of it.
    """

    def __init__(self, x_BTF: Tensor, tile: int, a_NF: Tensor) -> None:
        self.whole_BtNF = a_NF.new_empty(len(x_BTF), min(tile, x_BTF.shape[1]), *a_NF.shape)
        self.steps_BNF = self.whole_BtNF.unbind(1)


class _Tile:
    """Some tokens t of a sequence: their inputs, decays and states. The last two take the place of `rooms`' first."""

    def __init__(self, tokens: slice, rooms: Sequence[_Room], state_BNF: Tensor, a_NF: Tensor, *inputs: Tensor) -> None:
        self.before_BNF = state_BNF
        self.x_BtF, self.dt_BtF, self.b_BtN, self.c_BtN = (t[:, tokens].to(a_NF.dtype) for t in inputs)
        self.written_BtF = self.dt_BtF * self.x_BtF
        count = self.x_BtF.shape[1]
        decay_BtNF, states_BtNF = (room.whole_BtNF[:, :count] for room in rooms[:2])
        self.decay_BtNF = torch.mul(self.dt_BtF.unsqueeze(2), a_NF * LOG2_E, out=decay_BtNF).exp2_()
        self.states_BtNF = torch.mul(self.written_BtF.unsqueeze(2), self.b_BtN.unsqueeze(-1), out=states_BtNF)
        for decay_BNF, written_BNF in zip(*(room.steps_BNF[:count] for room in rooms[:2]), strict=True):
            state_BNF = written_BNF.addcmul_(decay_BNF, state_BNF)
        self.last_BNF = state_BNF.clone()


def _tiles(length: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, length)) for start in range(0, length, tile)]


def _contract(vector_Bti: Tensor, matrix_Btij: Tensor) -> Tensor:
    """Σ_i vector · matrix, (B, t, j). The vector stands left: on CPUs a tenth of the other way's time."""
    return torch.bmm(vector_Bti.flatten(0, 1).unsqueeze(1), matrix_Btij.flatten(0, 1)).view(*vector_Bti.shape[:2], -1)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTF: Tensor,
        dt_BTF: Tensor,
        a_NF: Tensor,
        b_BTN: Tensor,
        c_BTN: Tensor,
        d_F: Tensor,
        state_BNF: Tensor | None,
        tile: int,
    ) -> tuple[Tensor, Tensor]:
        full = torch.promote_types(x_BTF.dtype, torch.float32)
        a, d = a_NF.to(full), d_F.to(full)
        state = a.new_zeros(len(x_BTF), *a.shape) if state_BNF is None else state_BNF.to(full)
        y_BTF, kept = torch.empty(x_BTF.shape, dtype=x_BTF.dtype, device=x_BTF.device), []
        with no_autocast(x_BTF.device):
            rooms = [_Room(x_BTF, tile, a) for _ in range(2)]
            for tokens in _tiles(x_BTF.shape[1], tile):
                kept.append(state)
                part = _Tile(tokens, rooms, state, a, x_BTF, dt_BTF, b_BTN, c_BTN)
                y_BtF = _contract(part.c_BtN, part.states_BtNF)
                y_BTF[:, tokens] = y_BtF.addcmul_(part.x_BtF, d)
                state = part.last_BNF
        ctx.save_for_backward(x_BTF, dt_BTF, a_NF, b_BTN, c_BTN, d_F, torch.stack(kept))
        ctx.tile, ctx.from_state = tile, state_BNF is not None
        return y_BTF, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTF: Tensor, dlast_BNF: Tensor) -> tuple[Tensor | None, ...]:
        x_BTF, dt_BTF, a_NF, b_BTN, c_BTN, d_F, kept = ctx.saved_tensors
        full = kept.dtype
        a, d = a_NF.to(full), d_F.to(full)
        dx_BTF, ddt_BTF, db_BTN, dc_BTN = (
            torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x_BTF, dt_BTF, b_BTN, c_BTN)
        )
        da_NF, dd_F, dstate_BNF = torch.zeros_like(a), torch.zeros_like(d), dlast_BNF.to(full)
        with no_autocast(x_BTF.device):
            rooms = [_Room(x_BTF, ctx.tile, a) for _ in range(3)]
            for tokens, state_BNF in reversed(list(zip(_tiles(x_BTF.shape[1], ctx.tile), kept, strict=True))):
                part = _Tile(tokens, rooms, state_BNF, a, x_BTF, dt_BTF, b_BTN, c_BTN)
                dy_BtF = dy_BTF[:, tokens].to(full)
                dc_BTN[:, tokens] = _contract(dy_BtF, part.states_BtNF.mT)
                decays, steps = rooms[0].steps_BNF, rooms[2].steps_BNF
                dstates_BtNF = rooms[2].whole_BtNF[:, : dy_BtF.shape[1]]
                torch.mul(part.c_BtN.unsqueeze(-1), dy_BtF.unsqueeze(2), out=dstates_BtNF)
                last = dy_BtF.shape[1] - 1
                steps[last].add_(dstate_BNF)
                for i in range(last, 0, -1):
                    steps[i - 1].addcmul_(decays[i], steps[i])
                dstate_BNF = decays[0] * steps[0]
                db_BTN[:, tokens] = _contract(part.written_BtF, dstates_BtNF.mT)
                dwritten_BtF = _contract(part.b_BtN, dstates_BtNF)
                dlog_BtNF = part.decay_BtNF  # the gradient of dt·a takes the place of the decays
                dlog_BtNF[:, 1:].mul_(part.states_BtNF[:, :-1])
                dlog_BtNF[:, 0].mul_(part.before_BNF)
                dlog_BtNF.mul_(dstates_BtNF)
                da_NF += torch.mul(dlog_BtNF, part.dt_BtF.unsqueeze(2), out=dstates_BtNF).sum((0, 1))
                ddt_BTF[:, tokens] = dlog_BtNF.mul_(a).sum(2).addcmul_(dwritten_BtF, part.x_BtF)
                dd_F += (dy_BtF * part.x_BtF).sum((0, 1))
                dx_BTF[:, tokens] = dwritten_BtF.mul_(part.dt_BtF).addcmul_(dy_BtF, d)
        dstart_BNF = dstate_BNF if ctx.from_state else None
        return dx_BTF, ddt_BTF, da_NF.to(a_NF.dtype), db_BTN, dc_BTN, dd_F.to(d_F.dtype), dstart_BNF, None
