"""Norms, rotary embeddings and activations.

B batch, H heads, T tokens, E head width, F rotated pairs of channels, N rows, D normalised channels
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from morphogen.errors import InputError, unknown
from morphogen.ops.autocast import autocast_dtype, no_autocast
from morphogen.ops.function import call

RopeKind = Literal["standard", "partial", "yarn"]
#: Those that turn all the channels they are given.
WholeRope = Literal["standard", "yarn"]

#: exp(x) = 2^(x · LOG2_E): on CPUs torch's exp2 takes a third of the time of its exp.
LOG2_E = math.log2(math.e)
#: YaRN turns channels that turn this often within the context unchanged (fast), or fully interpolated (slow).
YARN_BETA_FAST = 32.0
YARN_BETA_SLOW = 1.0


def rms_norm(x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
    """x / √(mean(x²) + eps) · weight over the last axis. Ref: arXiv 1910.07467.

    weight: (D,). eps: a 0-dim tensor, a constant without gradient. Statistics are at least fp32. The result has x's
    dtype; under autocast it has autocast's, so that nothing after it is promoted by an fp32 weight.
    """
    y = call(_RMSNorm, x, weight, eps, autocast_dtype(x.device) or x.dtype)
    assert isinstance(y, Tensor)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: Tensor, dtype: torch.dtype) -> Tensor:
        full = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=full)
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        y: Tensor = (x * rstd).mul_(weight)
        return y.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """LayerNorm's kernel with a mean of zero, and the share it subtracts for the mean given back."""
        x, weight, rstd = ctx.saved_tensors
        size = x.shape[-1]
        x_ND, dy_ND, rstd_N1 = (t.to(rstd.dtype).reshape(-1, t.shape[-1]) for t in (x, dy, rstd))
        weight_D = weight.to(rstd.dtype)
        want = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        dx_ND, dweight_D, _ = torch.ops.aten.native_layer_norm_backward(
            dy_ND, x_ND, [size], torch.zeros_like(rstd_N1), rstd_N1, weight_D, None, want
        )
        if not want[0]:
            return None, dweight_D.to(weight.dtype), None, None
        with no_autocast(x.device):
            dx_ND.addcmul_(torch.mv(dy_ND, weight_D)[:, None], rstd_N1, value=1 / size)
        return dx_ND.view(x.shape).to(x.dtype), dweight_D.to(weight.dtype) if want[1] else None, None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: Tensor) -> Tensor:
    """(x − mean(x)) / √(var(x) + eps) · weight + bias over the last axis. Ref: arXiv 1607.06450.

    weight, bias: (D,). eps: a 0-dim tensor, a constant without gradient. Statistics and sums are at least fp32. The
    result's dtype is as for `rms_norm`.
    """
    dtype = autocast_dtype(x.device) or x.dtype
    full = x.to(torch.promote_types(x.dtype, torch.float32))  # torch's kernel sums the weight's gradient in x's dtype
    if x.device.type == "cpu":
        return F.layer_norm(full, weight.shape, weight, bias, float(eps)).to(dtype)
    # elsewhere reading eps as a number would wait for the device
    variance, mean = torch.var_mean(full, -1, correction=0, keepdim=True)
    return ((full - mean) * torch.rsqrt(variance + eps) * weight + bias).to(dtype)


def rope_frequencies(
    head_dim: int, theta: float, kind: RopeKind = "standard", factor: float = 1.0, context: int = 2048
) -> tuple[Tensor, float]:
    """Angles per token of each pair of channels, freqs_F (fp64, radians), and the factor on queries and on keys.

    - standard: theta^(−2f / head_dim) / `factor`, as though positions were divided by it; factor on queries and keys 1.
      Ref: arXiv 2104.09864, and 2306.15595 for the division.
    - partial: the same on the first `factor` of the channels only; the others are not turned.
    - yarn: for a context `factor` times `context`: pairs turning more than 32 times within `context` as in standard,
      those turning less than once slowed by `factor`, a ramp between; queries and keys each times 0.1·ln(factor) + 1.
      Ref: arXiv 2309.00071.

    Raises InputError for sizes that give no rotation.
    """
    if kind not in get_args(RopeKind):
        raise InputError(unknown("rope_frequencies: kind", kind, get_args(RopeKind)))
    if head_dim < 2:
        raise InputError(f"rope_frequencies: got head_dim {head_dim}, expected at least 2")
    if not theta > 1.0:
        raise InputError(f"rope_frequencies: got theta {theta}, expected more than 1")
    if kind == "partial" and not 0.0 < factor <= 1.0:
        raise InputError(f"rope_frequencies: got factor {factor}, expected 0 < factor ≤ 1, a share of the channels")
    if kind == "standard" and not factor >= 1.0:
        raise InputError(f"rope_frequencies: got factor {factor}, expected at least 1, what positions are divided by")
    if kind == "yarn" and not (factor >= 1.0 and context >= 1):
        raise InputError(f"rope_frequencies: got factor {factor} and context {context}, expected both at least 1")
    pairs = max(1, int(head_dim * factor) // 2) if kind == "partial" else head_dim // 2
    pair_F = torch.arange(pairs, dtype=torch.float64)
    freqs_F = theta ** (-pair_F / pairs)
    if kind != "yarn":
        return freqs_F / factor if kind == "standard" else freqs_F, 1.0

    def pair_turning(times: float) -> float:
        return pairs * math.log(context / (times * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair_turning(YARN_BETA_FAST)), 0)
    high = min(math.ceil(pair_turning(YARN_BETA_SLOW)), 2 * pairs - 1)
    slowed_F = ((pair_F - low) / max(high - low, 1e-3)).clamp(0.0, 1.0)
    return freqs_F * (1.0 - slowed_F + slowed_F / factor), 0.1 * math.log(factor) + 1.0


def rope_rotations(
    length: int,
    channels: int,
    *,
    theta: float,
    kind: WholeRope = "standard",
    factor: float = 1.0,
    context: int = 2048,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """cis_TF = exp(i·t·freqs[f]) for the first `channels` of a head, and the factor on queries and on keys.

    kind, factor, context: as for `rope_frequencies`. complex128, where the device has it.
    """
    freqs_F, attention_scale = rope_frequencies(channels, theta, kind, factor, context)
    angle_TF = torch.arange(length, dtype=torch.float64)[:, None] * freqs_F
    cis_TF = torch.polar(torch.ones_like(angle_TF), angle_TF)
    on_mps = device is not None and device.type == "mps"
    return cis_TF.to(device, torch.complex64 if on_mps else torch.complex128), attention_scale


def apply_rope(x_BHTE: Tensor, cis_TF: Tensor) -> Tensor:
    """Channels 2f and 2f+1 of x as one complex number times cis[t, f]; channels from 2F on unchanged. Ref: 2104.09864.

    The result has x's shape and dtype; the product is taken in fp32 at least.
    """
    real = torch.promote_types(x_BHTE.dtype, torch.float32)
    turned = 2 * cis_TF.shape[-1]
    pairs_BHTF2 = x_BHTE[..., :turned].to(real).reshape(*x_BHTE.shape[:-1], -1, 2)
    if x_BHTE.shape[-1] % 2:
        pairs_BHTF2 = pairs_BHTF2.contiguous()  # a complex number starts at an even place in memory
    z_BHTF = torch.view_as_complex(pairs_BHTF2) * cis_TF.to(real.to_complex())
    y_BHTE = torch.view_as_real(z_BHTF).flatten(-2).to(x_BHTE.dtype)
    return y_BHTE if turned == x_BHTE.shape[-1] else torch.cat([y_BHTE, x_BHTE[..., turned:]], -1)


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)². Ref: arXiv 2109.08668."""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), GELU but for 5e-4 at most. Ref: arXiv 1606.08415."""
    return F.gelu(x, approximate="tanh")


#: Activations of one argument, and by the name of the gated one those that its gate goes through.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
}
GATES: Mapping[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "geglu": F.gelu, "geglu_tanh": gelu_tanh}


def gated_activation(name: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) ⊙ up: silu for swiglu, gelu for geglu, its tanh formula for geglu_tanh. Ref: arXiv 2002.05202.

    Raises InputError for another name.
    """
    if name not in GATES:
        raise InputError(unknown("gated_activation", name, GATES))
    return GATES[name](gate) * up


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, where y is silu(x)."""
    dx: Tensor = torch.ops.aten.silu_backward(dy, x)
    return dx
