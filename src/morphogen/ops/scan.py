"""The state-space recurrence with a decay per channel and state (Mamba), token by token.

One autograd function with a hand-written backward pass that keeps little and recomputes the rest. Sums run in fp32 at
least, whatever the dtype of the inputs.

B batch, T tokens, F channels, N state size
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from morphogen.ops.autocast import no_autocast
from morphogen.ops.backends import kernel
from morphogen.ops.elementwise import LOG2_E
from morphogen.ops.function import call
from morphogen.ops.recurrent_kernels import SCAN


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
    mamba = None
    if state_BNF is None:  # it starts from none but zeros
        mamba = kernel((SCAN,), x_BTF.device, x_BTF.dtype, x_BTF.shape[1], tuple(a_NF.shape))
    if mamba is not None:
        with no_autocast(x_BTF.device):
            y_BTF, last_BNF = mamba(x_BTF, dt_BTF, a_NF, b_BTN, c_BTN, d_F)
        return y_BTF, last_BNF
    y_BTF, last_BNF = call(_SelectiveScan, x_BTF, dt_BTF, a_NF, b_BTN, c_BTN, d_F, state_BNF, tile)
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
