"""The module of `AssocMemory`. B batch, T tokens, D model dim, H heads, E head dim, F features of a key."""

from torch import Tensor

from morphogen.ops.fast_weights import delta_memory, features
from morphogen.parts.contract.branch import Branch, State
from morphogen.parts.contract.layers import Linear, make_norm
from morphogen.parts.contract.part import Context
from morphogen.parts.memory.associative_memory import AssocMemory


class AssocMemoryBranch(Branch):
    """The module of `AssocMemory`. While decoding it remembers S, (B, H, F, E)."""

    def __init__(self, part: AssocMemory, ctx: Context) -> None:
        super().__init__()
        self.heads, self.feature_map = part.heads, part.feature_map
        width = part.heads * part.head_dim
        self.norm = make_norm(ctx.norm, ctx.dim)
        self.q = Linear(ctx.dim, width)
        self.k = Linear(ctx.dim, width)
        self.v = Linear(ctx.dim, width)
        self.beta = Linear(ctx.dim, part.heads)
        self.o = Linear(width, ctx.dim)

    def mix(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.mix_on(x_BTD, {})

    def mix_on(self, x_BTD: Tensor, state: State) -> Tensor:
        """As `mix`, after what `state` remembers."""
        q_BHTE, k_BHTE, v_BHTE = (
            layer(x_BTD).view(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        q_BHTF, k_BHTF = features(q_BHTE, self.feature_map), features(k_BHTE, self.feature_map)
        beta_BHT = self.beta(x_BTD).to(q_BHTF.dtype).sigmoid().transpose(1, 2)
        y_BHTE, state["memory"] = delta_memory(q_BHTF, k_BHTF, v_BHTE, beta_BHT, state.get("memory"))
        return self.o(y_BHTE.transpose(1, 2).flatten(2).to(x_BTD.dtype))


# --------------------------------------------------------------------------------------------------- operators
