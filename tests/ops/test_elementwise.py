"""Norms, RoPE and activations against references. B batch, H heads, T tokens, E head width, F pairs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.errors import InputError
from morphogen.ops import naive
from morphogen.ops.elementwise import (
    ACTIVATIONS,
    apply_rope,
    gated_activation,
    layer_norm,
    rms_norm,
    rope_frequencies,
    rope_rotations,
)

Norm = Callable[..., Tensor]
NORMS = [(rms_norm, naive.rms_norm, 1), (layer_norm, naive.layer_norm, 2)]
SHAPES = [(1, 3), (3, 7), (2, 63, 20), (2, 3, 5, 64)]


def norm_inputs(shape: tuple[int, ...], n_weights: int, dtype: torch.dtype, x_dtype: torch.dtype) -> list[Tensor]:
    """x with a mean and a scale, then weight (and bias)."""
    draw = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=draw, dtype=torch.float64) * 3 + 1
    weights = [torch.randn(shape[-1], generator=draw, dtype=torch.float64) + 1 for _ in range(n_weights)]
    return [x.to(x_dtype).requires_grad_(), *(w.to(dtype).requires_grad_() for w in weights)]


def outputs(function: Norm, leaves: list[Tensor], eps: Tensor) -> list[Tensor]:
    """y and all gradients under a fixed gradient of y."""
    y = function(*leaves, eps)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def assert_close(want: list[Tensor], got: list[Tensor], rtol: float) -> None:
    """Relative RMS error per tensor."""
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), want, got, strict=False):
        scale = a.double().square().mean().sqrt().clamp(min=1e-2)
        error = (a.double() - b.double()).square().mean().sqrt() / scale
        assert error <= rtol, f"{name}: relative RMS error {float(error):.2e}"


@pytest.mark.parametrize(("fast", "slow", "n_weights"), NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_a_norm_equals_its_formula_in_output_and_all_gradients(
    fast: Norm, slow: Norm, n_weights: int, shape: tuple[int, ...], dtype: torch.dtype, rtol: float
) -> None:
    for eps in (1e-6, 0.3):
        leaves = norm_inputs(shape, n_weights, dtype, dtype)
        eps_tensor = torch.tensor(eps, dtype=dtype)
        assert_close(outputs(slow, leaves, eps_tensor), outputs(fast, leaves, eps_tensor), rtol)


@pytest.mark.parametrize(("fast", "slow", "n_weights"), NORMS)
def test_a_norm_of_a_transposed_view_equals_that_of_its_copy(fast: Norm, slow: Norm, n_weights: int) -> None:
    x, *weights = norm_inputs((2, 7, 3, 8), n_weights, torch.float64, torch.float64)
    eps = torch.tensor(1e-5, dtype=torch.float64)
    view = x.detach().transpose(1, 2).requires_grad_()
    assert_close(outputs(slow, [view, *weights], eps), outputs(fast, [view, *weights], eps), 1e-12)


@pytest.mark.parametrize(("fast", "slow", "n_weights"), NORMS)
def test_an_fp32_weight_does_not_promote_low_precision(fast: Norm, slow: Norm, n_weights: int) -> None:
    leaves = norm_inputs((2, 63, 64), n_weights, torch.float32, torch.bfloat16)
    eps = torch.tensor(1e-5)
    exact = outputs(slow, [x.detach().double().requires_grad_() for x in leaves], eps.double())
    got = outputs(fast, leaves, eps)
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    assert got[2].dtype == torch.float32
    assert_close(exact, got, 1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = outputs(fast, [x.detach().float().requires_grad_() for x in leaves], eps)
    assert [x.dtype for x in cast[:3]] == [torch.bfloat16, torch.float32, torch.float32]
    assert_close(exact, cast, 1e-2)


@pytest.mark.parametrize(("fast", "slow", "n_weights"), NORMS)
def test_off_the_cpu_a_norm_has_the_same_shapes_and_eps_is_not_read(fast: Norm, slow: Norm, n_weights: int) -> None:
    leaves = [x.detach().to("meta").requires_grad_() for x in norm_inputs((2, 7, 8), n_weights, *[torch.float32] * 2)]
    y = fast(*leaves, torch.empty((), device="meta"))
    assert [g.shape for g in torch.autograd.grad(y.sum(), leaves)] == [x.shape for x in leaves]


def test_gradients_come_only_where_they_are_wanted() -> None:
    x, weight = norm_inputs((2, 8), 1, torch.float64, torch.float64)
    eps = torch.tensor(1e-5, dtype=torch.float64)
    want = torch.autograd.grad(naive.rms_norm(x, weight, eps).sum(), (x, weight))
    (only_x,) = torch.autograd.grad(rms_norm(x, weight.detach(), eps).sum(), x)
    (only_weight,) = torch.autograd.grad(rms_norm(x.detach(), weight, eps).sum(), weight)
    torch.testing.assert_close((only_x, only_weight), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("head_dim", "channels"), [(8, 8), (20, 10), (9, 8), (7, 2)])
def test_rope_turns_pairs_and_passes_the_rest(head_dim: int, channels: int) -> None:
    draw = torch.Generator().manual_seed(0)
    cis_TF, _ = rope_rotations(63, channels, theta=100.0)
    freqs_F, _ = rope_frequencies(channels, 100.0)
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        x_BHTE = torch.randn(2, 63, 3, head_dim, generator=draw, dtype=dtype).transpose(1, 2).requires_grad_()
        want, got = naive.rope(x_BHTE, freqs_F), apply_rope(x_BHTE, cis_TF)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=tol, atol=tol)
        weights = torch.randn(want.shape, generator=draw, dtype=dtype)
        grads = [torch.autograd.grad((y * weights).sum(), x_BHTE)[0] for y in (want, got)]
        torch.testing.assert_close(grads[1], grads[0], rtol=tol, atol=tol)
    assert apply_rope(x_BHTE.bfloat16(), cis_TF).dtype == torch.bfloat16


def test_scores_under_rope_depend_on_the_distance_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=draw, dtype=torch.float64).expand(1, 1, 50, 8) for _ in range(2))
    cis_TF, _ = rope_rotations(50, 8, theta=1e4)
    scores_TT = (apply_rope(q, cis_TF) @ apply_rope(k, cis_TF).mT)[0, 0]
    torch.testing.assert_close(scores_TT[1:, 1:], scores_TT[:-1, :-1], rtol=1e-10, atol=1e-12)


def transformers_rope(kind: str, head_dim: int, theta: float, factor: float, context: int) -> tuple[Tensor, float]:
    """inv_freq and attention factor as transformers computes them."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        parameters |= {"factor": factor}
    if kind == "yarn":
        parameters |= {"original_max_position_embeddings": context}
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=int(context * factor),
        rope_parameters=parameters,
    )
    if kind == "default":
        return 1.0 / theta ** (torch.arange(0, head_dim, 2) / head_dim), 1.0
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return inv_freq, float(scale)


@pytest.mark.parametrize(
    ("head_dim", "theta", "factor", "context"),
    [(64, 1e4, 4.0, 2048), (32, 5e5, 16.0, 4096), (128, 1e4, 1.0, 512), (8, 1e4, 8.0, 64)],
)
def test_yarn_is_that_of_transformers(head_dim: int, theta: float, factor: float, context: int) -> None:
    want_F, want_scale = transformers_rope("yarn", head_dim, theta, factor, context)
    freqs_F, scale = rope_frequencies(head_dim, theta, "yarn", factor, context)
    torch.testing.assert_close(freqs_F.float(), want_F, rtol=2e-6, atol=0)
    assert scale == pytest.approx(want_scale, rel=1e-6)
    assert scale == pytest.approx(0.1 * math.log(factor) + 1)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn"])
def test_interleaved_pairs_are_the_halves_of_transformers_in_another_order(kind: str) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    head_dim, length = 16, 40
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, length, head_dim, generator=draw) for _ in range(2))
    inv_freq_F, factor = transformers_rope(kind, head_dim, 1e4, 4.0, 256)
    angle_TE = (torch.arange(length)[:, None] * inv_freq_F).repeat(1, 2)[None]
    halves = torch.cat([torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)])
    want = apply_rotary_pos_emb(q[..., halves], k[..., halves], angle_TE.cos() * factor, angle_TE.sin() * factor)
    ours: dict[str, Any] = {"default": {}, "linear": {"factor": 4.0}, "yarn": {"kind": "yarn", "factor": 4.0}}[kind]
    cis_TF, scale = rope_rotations(length, head_dim, theta=1e4, context=256, **ours)
    for x, y in zip((q, k), want, strict=True):
        torch.testing.assert_close(apply_rope(x, cis_TF)[..., halves] * scale, y, rtol=1e-5, atol=1e-5)


def test_a_factor_on_standard_rope_puts_tokens_where_nearer_ones_stood() -> None:
    plain_TF, _ = rope_rotations(21, 8, theta=100.0)
    stretched_TF, scale = rope_rotations(61, 8, theta=100.0, factor=3.0)
    torch.testing.assert_close(stretched_TF[::3], plain_TF)
    between_F = torch.polar(torch.ones(4, dtype=torch.float64), 5 / 3 * 100.0 ** (-torch.arange(4).double() / 4))
    torch.testing.assert_close(stretched_TF[5], between_F)
    assert scale == 1.0


def test_partial_turns_the_given_share() -> None:
    freqs_F, scale = rope_frequencies(16, 100.0, "partial", 0.5)
    torch.testing.assert_close(freqs_F, rope_frequencies(8, 100.0)[0])
    assert scale == 1.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((8, 1e4, "yarm"), "did you mean 'yarn'"),
        ((1, 1e4), "got head_dim 1"),
        ((8, 1.0), "got theta 1.0"),
        ((8, 1e4, "partial", 1.5), "a share of the channels"),
        ((8, 1e4, "standard", 0.5), "got factor 0.5"),
        ((8, 1e4, "yarn", 0.5), "got factor 0.5"),
    ],
)
def test_impossible_rotations_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        rope_frequencies(*arguments)


def test_activations_are_what_their_names_say() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    up = torch.linspace(2, -1, 13, dtype=torch.float64)
    gelu = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    silu = x / (1 + torch.exp(-x))
    tanh = x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    want = {"gelu": gelu, "gelu_tanh": tanh, "silu": silu, "relu": x.clamp(min=0), "relu2": x.clamp(min=0) ** 2}
    assert set(ACTIVATIONS) == set(want)
    for name, y in want.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), y)
    torch.testing.assert_close(gated_activation("swiglu", x, up), silu * up)
    torch.testing.assert_close(gated_activation("geglu", x, up), gelu * up)
    torch.testing.assert_close(gated_activation("geglu", x, up), F.gelu(x) * up)
    with pytest.raises(InputError, match="did you mean 'swiglu'"):
        gated_activation("swigl", x, up)
