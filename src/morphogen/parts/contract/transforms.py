"""Weights made from several of the parent's, by name, so that a plan can say as plain data what is computed.

D residual width, H query heads, K kv heads, G query heads per kv head (H = K·G), E head dim, L latent dim,
R rotated channels of a head, F rows of a map (heads times channels)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: The parent's tensors, in fp64, and whole numbers, to one tensor.
Transform = Callable[[Sequence[Tensor], Sequence[int]], Tensor]


def _factors(tensors: Sequence[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """The best up · down of a given rank to keys over values, (2F, L) and (L, D), for inputs gain ⊙ (white noise).

    Latents of such inputs have unit variance, so that their RMSNorm changes little. Everything is NaN when a weight is
    not finite.
    """
    k_FD, v_FD, gain_D = tensors
    both_FD = torch.cat([k_FD, v_FD]) * gain_D
    if not bool(both_FD.isfinite().all()):
        nan = torch.full_like(both_FD, torch.nan)
        return nan[:, :1].expand(-1, rank), nan[:1].expand(rank, -1)
    u_FL, s_L, vh_LD = torch.linalg.svd(both_FD, full_matrices=False)
    inverse_D = torch.where(gain_D.abs() > 1e-6 * gain_D.abs().amax(), 1.0 / gain_D, 0.0)
    return u_FL[:, :rank] * s_L[:rank], vh_LD[:rank] * inverse_D


def latent_down(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """(k_FD, v_FD, gain_D), (L,): the map to a latent from which keys and values are read, (L, D)."""
    return _factors(tensors, args[0])[1]


def latent_keys(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """(k_FD, v_FD, gain_D), (L, K, G): the keys of every query head from the latent, (H·E, L)."""
    up_FL, _ = _factors(tensors, args[0])
    return _repeated(up_FL[: len(tensors[0])], *args[1:])


def latent_values(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """(k_FD, v_FD, gain_D), (L, K, G): the values of every query head from the latent, (H·E, L)."""
    up_FL, _ = _factors(tensors, args[0])
    return _repeated(up_FL[len(tensors[0]) :], *args[1:])


def _repeated(up_FL: Tensor, kv_heads: int, group: int) -> Tensor:
    """Each kv head's rows once for every query head of its group."""
    return up_FL.reshape(kv_heads, -1, up_FL.shape[-1]).repeat_interleave(group, 0).flatten(0, 1)


def multiplied_out(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """(up_FL, down_LD, latent gain_L, latent eps, gain_D), (): up · norm · down as one map, (F, D).

    The latent's RMSNorm is what it is on average over inputs gain ⊙ (white noise).
    """
    up_FL, down_LD, latent_gain_L, latent_eps, gain_D = tensors
    mean_square = (down_LD * gain_D).square().sum(1).mean()
    return up_FL @ (latent_gain_L[:, None] * down_LD) * torch.rsqrt(mean_square + latent_eps)


def multiplied_out_keys(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """(those of `multiplied_out`, rotated key's map_RD or none), (H,): as there, each head's rows after the R, of D."""
    keys_FD, rotated = multiplied_out(tensors[:5], ()), tensors[5:]
    return joined_heads([*(map_RD.repeat(args[0], 1) for map_RD in rotated), keys_FD], args)


def joined_heads(tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """Maps (H·E_i, D), (H,): joined head by head, (H·ΣE_i, D)."""
    return torch.cat([map_FD.reshape(args[0], -1, map_FD.shape[-1]) for map_FD in tensors], 1).flatten(0, 1)


TRANSFORMS: dict[str, Transform] = {
    f.__name__: f for f in (latent_down, latent_keys, latent_values, multiplied_out, multiplied_out_keys, joined_heads)
}


def transform(name: str, tensors: Sequence[Tensor], args: Sequence[int]) -> Tensor:
    """The transform called `name`, in fp64, contiguous."""
    return TRANSFORMS[name]([x.detach().cpu().double() for x in tensors], args).contiguous()
