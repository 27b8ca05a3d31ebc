"""The module of `MoE`.

B batch, T tokens, N = B·T, D model dim, F places (what the router chooses among), E experts, K choices per token,
W gates between twins, H hidden units of an expert, A assignments of tokens to experts
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.ops import routing
from morphogen.ops.autocast import autocast_dtype, no_autocast
from morphogen.ops.elementwise import ACTIVATIONS, gated_activation
from morphogen.ops.names import RouterKind
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.ffn.mlp import GATED
from morphogen.parts.ffn.moe import MoE
from morphogen.parts.ffn.sharing import rounds

#: How far one training step moves a router's bias: in logits for the softmax router, in scores for the sigmoid one.
BIAS_STEP: Mapping[RouterKind, float] = {"softmax": 1e-2, "sigmoid": 3e-3}


class Stack(nn.Module):
    """One tensor for all experts; `bias` entries of a buffer beside it where it is a router's."""

    bias: Tensor | None

    def __init__(self, *shape: int, bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.register_buffer("bias", torch.empty(bias) if bias else None)


@dataclass(frozen=True)
class Routed:
    """Where the tokens go. turn_NW: the twins' logits, None without twins."""

    experts_NK: Tensor
    weights_NK: Tensor
    logits_NF: Tensor
    logp_NF: Tensor
    turn_NW: Tensor | None


class Round(NamedTuple):
    """Gates that act at once: their numbers, hosts and twins; and expert -> which gate it meets, −1 for none, (E,)."""

    gates_W: Tensor
    hosts_W: Tensor
    twins_W: Tensor
    gate_E: Tensor


@functools.lru_cache(maxsize=256)
def _rounds(places: int, twins: tuple[int, ...], experts: int, device: torch.device) -> tuple[Round, ...]:
    """In the order in which tokens meet them."""
    found = []
    for gates in rounds(places, twins):
        hosts = [twins[gate] for gate in gates]
        met = dict(zip(hosts, gates, strict=True))
        rows = gates, hosts, [places + gate for gate in gates], [met.get(e, -1) for e in range(experts)]
        found.append(Round(*(torch.tensor(row, device=device) for row in rows)))
    return tuple(found)


class Experts(Branch):
    """The module of `MoE`. Experts are numbered: those with a place of their own, their twins, then `part.experts`."""

    def __init__(self, part: MoE, ctx: Context) -> None:
        super().__init__()
        self.part = part
        dim, stacked, others, width = ctx.dim, part.stacked, len(part.experts), part.shared * part.shared_width
        biased, gated = part.router_bias == "aux_free", part.activation in GATED
        self.norm = make_norm(ctx.norm, dim)
        self.router = Stack(part.own_places, dim, bias=stacked * biased) if stacked else None
        self.other_router = Stack(others, dim, bias=others * biased) if others else None
        self.twin = Stack(len(part.twins), dim) if part.twins else None
        self.up = Stack(stacked, part.hidden, dim) if stacked else None
        self.gate = Stack(stacked, part.hidden, dim) if stacked and gated else None
        self.down = Stack(stacked, part.hidden, dim) if stacked else None
        self.shared_up = Linear(dim, width) if width else None
        self.shared_gate = Linear(dim, width) if width and gated else None
        self.shared_down = Linear(width, dim) if width else None
        self.others = nn.ModuleList(expert.build(ctx) for expert in part.experts)
        for other in self.others:
            other.norm = nn.Identity()  # the input is normalised once for all

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self._mix(x_BTD, None)

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """Remembers what each expert has taken, where it may refuse, and what the parts in `experts` remember."""
        return self._mix(x_BTD, state)

    def _mix(self, x_BTD: Tensor, state: State | None) -> Tensor:
        part, device = self.part, x_BTD.device
        x_BTD = x_BTD.to(autocast_dtype(device) or x_BTD.dtype)
        x_ND = x_BTD.flatten(0, 1)
        with no_autocast(device):
            routed = self._route(x_ND)
            kept_NK = self._kept(routed.experts_NK.view(*x_BTD.shape[:2], -1), state)
            self._report(routed, kept_NK)
        refused = kept_NK if self._refuses else None
        dispatch = routing.dispatch(routed.experts_NK, part.n_experts, refused)
        y_ND = self._outputs(dispatch, routed.weights_NK, x_BTD, state)
        if self.shared_up is not None and self.shared_down is not None:
            up = self.shared_up(x_ND)
            if self.shared_gate is None:
                h = ACTIVATIONS[part.activation](up)
            else:
                h = gated_activation(part.activation, self.shared_gate(x_ND), up)
            y_ND = y_ND + self.shared_down(h)
        return y_ND.view(x_BTD.shape)

    # ------------------------------------------------------------------------------------------------ routing

    def _route(self, x_ND: Tensor) -> Routed:
        """The choice, in fp32 at least."""
        part = self.part
        x_ND = x_ND.to(torch.promote_types(x_ND.dtype, torch.float32))
        rows: list[Tensor] = [router.weight for router in (self.router, self.other_router) if router is not None]
        logits_NF = F.linear(x_ND, torch.cat(rows).to(x_ND.dtype))
        bias_F, lean_W = self._biases()
        chosen = routing.choose(logits_NF, part.k, part.router_type, part.router_temperature, bias_F)
        places_NK, weights_NK = chosen.places_NK, chosen.weights_NK
        experts_NK = places_NK + len(part.twins) * (places_NK >= part.own_places)
        turn_NW = None
        if self.twin is not None:
            turn_NW = F.linear(x_ND, self.twin.weight.to(x_ND.dtype))
            for gates in self._rounds(x_ND.device):
                which_NK = gates.gate_E[experts_NK]
                split_NK, which_NK = which_NK >= 0, which_NK.clamp(min=0)
                lean_NK = torch.zeros_like(weights_NK) if lean_W is None else lean_W.to(x_ND.dtype)[which_NK]
                second_NK, factor_NK = routing.between_twins(turn_NW.gather(1, which_NK), lean_NK, split_NK)
                experts_NK = torch.where(second_NK, part.own_places + which_NK, experts_NK)
                weights_NK = weights_NK * factor_NK
        return Routed(experts_NK, weights_NK, logits_NF, chosen.logp_NF, turn_NW)

    def _rounds(self, device: torch.device) -> tuple[Round, ...]:
        return _rounds(self.part.own_places, self.part.twins, self.part.n_experts, device)

    def _biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Of every place, and by how much every gate leans to its twin; None without biases, or without twins.

        A place's is its expert's own; where two share it, the mean of the two, gate by gate from the last one on.
        """
        part, biases, lean_W = self.part, list[Tensor](), None
        if self.router is not None and self.router.bias is not None:
            bias_E = self.router.bias
            if part.twins:
                lean_W = bias_E.new_zeros(len(part.twins))
                for gates in reversed(self._rounds(bias_E.device)):
                    first_W, second_W = bias_E[gates.hosts_W], bias_E[gates.twins_W]
                    lean_W = lean_W.index_copy(0, gates.gates_W, second_W - first_W)
                    bias_E = bias_E.index_copy(0, gates.hosts_W, torch.stack([first_W, second_W]).mean(0))
            biases.append(bias_E[: part.own_places])
        if self.other_router is not None and self.other_router.bias is not None:
            biases.append(self.other_router.bias)
        return torch.cat(biases) if biases else None, lean_W

    def _probabilities(self, routed: Routed) -> Tensor:
        """Each token's distribution over experts, probs_NE: its scores over their sum, twins sharing their place's."""
        part = self.part
        probs_NF = routed.logp_NF.softmax(-1)
        if routed.turn_NW is None:
            return probs_NF
        own_NF, others_NF = probs_NF[:, : part.own_places], probs_NF[:, part.own_places :]
        stacked_NE = torch.cat([own_NF, torch.zeros_like(routed.turn_NW)], 1)
        for gates in self._rounds(probs_NF.device):
            second_NW = stacked_NE[:, gates.hosts_W] * routed.turn_NW[:, gates.gates_W].sigmoid()
            stacked_NE = stacked_NE.index_add(1, gates.hosts_W, -second_NW).index_add(1, gates.twins_W, second_NW)
        return torch.cat([stacked_NE, others_NF], 1)

    def _kept(self, experts_BTK: Tensor, state: State | None) -> Tensor | None:
        """Which assignments are within capacity, (N, K); None where nobody asks. `state` counts what was taken."""
        part = self.part
        if part.capacity_factor is None or not (self._refuses or self.record is not None):
            return None
        (batch, length, _), device, start = experts_BTK.shape, experts_BTK.device, 0
        load_BE = torch.zeros(batch, part.n_experts, dtype=torch.long, device=device)
        if state is not None and "load" in state:
            load_BE, start = state["load"], int(state["position"][0])
        ceiling_T = routing.ceilings(part.capacity_factor, part.k, part.n_experts, start, length).to(device)
        kept_BTK, load_BE = routing.within_capacity(experts_BTK, ceiling_T, load_BE)
        if state is not None and self._refuses:
            state["load"] = load_BE
            state["position"] = torch.full((batch,), start + length, device=device)
        return kept_BTK.flatten(0, 1)

    # ------------------------------------------------------------------------------------------------ outputs

    def _outputs(self, dispatch: routing.Dispatch, weights_NK: Tensor, x_BTD: Tensor, state: State | None) -> Tensor:
        """Every token's outputs, times its weights, summed; y_ND."""
        outputs = [its.combine(y_AD, weights_NK) for its, y_AD in self._assigned(dispatch, x_BTD, state)]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).sum(0)

    def _assigned(
        self, dispatch: routing.Dispatch, x_BTD: Tensor, state: State | None
    ) -> Iterator[tuple[routing.Dispatch, Tensor]]:
        """Assignments and the output of each, y_AD: those to the stacked experts, then those to each of the others."""
        part, x_ND = self.part, x_BTD.flatten(0, 1)
        of_stacked, *of_others = dispatch.divided(part.stacked) if self.others else [dispatch]
        if self.up is not None and self.down is not None:
            gate_EHD = None if self.gate is None else self.gate.weight
            up_EHD, down_EHD = self.up.weight, self.down.weight
            yield of_stacked, routing.assigned_outputs(x_ND, of_stacked, up_EHD, gate_EHD, down_EHD, part.activation)
        for i, (its_dispatch, expert) in enumerate(zip(of_others, part.experts, strict=True)):
            other = self.others[i]
            assert isinstance(other, Branch)
            if expert.pointwise:
                yield its_dispatch, other.mix(x_ND[its_dispatch.token_A][None])[0]
            else:
                y_BTD = other.mix(x_BTD) if state is None else _remembering(other, x_BTD, state, f"others.{i}.")
                yield its_dispatch, y_BTD.flatten(0, 1)[its_dispatch.token_A]

    @torch.no_grad()
    def written(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What each expert adds to the stream, on normalised input: (sum_E, count_E).

        sum_E: of gate weight times the norm of the output, over the expert's assignments; one that it refuses adds
        nothing. count_E: of all assignments.
        """
        routed = self._route(x_BTD.flatten(0, 1))
        experts_NK = routed.experts_NK
        kept_NK = self._kept(experts_NK.view(*x_BTD.shape[:2], -1), None)
        dispatch = routing.dispatch(experts_NK, self.part.n_experts, kept_NK if self._refuses else None)
        sum_E = torch.zeros(self.part.n_experts, dtype=routed.weights_NK.dtype, device=x_BTD.device)
        for its_dispatch, y_AD in self._assigned(dispatch, x_BTD, None):
            norm_A = torch.linalg.vector_norm(y_AD.to(sum_E.dtype), dim=-1)
            sum_E.index_add_(
                0, experts_NK.flatten()[its_dispatch.order_A], its_dispatch.weights(routed.weights_NK) * norm_A
            )
        return sum_E, experts_NK.flatten().bincount(minlength=self.part.n_experts)

    @property
    def _refuses(self) -> bool:
        """Whether experts refuse tokens beyond their capacity."""
        return self.part.drop_policy == "greedy"

    # ---------------------------------------------------------------------------------------------- reporting

    def _report(self, routed: Routed, kept_NK: Tensor | None) -> None:
        """Auxiliary losses and figures, while a recording is open.

        `router_entropy` is in nats; `router_overflow` is the share of assignments beyond the capacity, which the load
        behind `expert_load_max_over_mean` counts too.
        """
        if self.record is None:
            return
        part = self.part
        probs_NE = self._probabilities(routed)
        load_E = routed.experts_NK.flatten().bincount(minlength=part.n_experts).to(probs_NE.dtype)
        entropy = routing.entropy(probs_NE)
        if part.balance:
            self.record.add_loss("balance", part.balance * routing.balance_loss(probs_NE, load_E))
        if part.z_loss:
            self.record.add_loss("router_z", part.z_loss * routing.z_loss(routed.logits_NF))
        self.record.add_loss("router_entropy", entropy)
        self.record.add_figure("router_entropy", entropy)
        self.record.add_figure("expert_load_max_over_mean", load_E.max() / load_E.mean())
        overflow = load_E.new_zeros(()) if kept_NK is None else 1.0 - kept_NK.to(load_E.dtype).mean()
        self.record.add_figure("router_overflow", overflow)
        self.record.add_tally(self, load_E)

    @torch.no_grad()
    def take_back(self, counts: Tensor) -> None:
        """Each expert's bias a step up or down, as its load in this training step was below or above the mean."""
        step_E = BIAS_STEP[self.part.router_type] * torch.sign(counts.mean() - counts)
        steps = torch.split(step_E, [self.part.stacked, len(self.part.experts)])
        for router, its_step_E in zip((self.router, self.other_router), steps, strict=True):
            if self.training and router is not None and router.bias is not None:
                router.bias += its_step_E.to(router.bias.dtype)


def _remembering(branch: Branch, x_BTD: Tensor, state: State, prefix: str) -> Tensor:
    """`branch.mix_on` with its part of the state, the names that begin with `prefix`."""
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    y_BTD = branch.mix_on(x_BTD, inner)
    state.update({prefix + name: value for name, value in inner.items()})
    return y_BTD
