"""`priors`: what is taken for ordinary where nothing better is known. Soft: no candidate is turned away by them."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat

from morphogen.parts.contract.frozen import Frozen


class Priors(Frozen):
    """What is ordinary. By default they change no search; `scale` and ablations go by them."""

    tokens_per_param: PositiveFloat | None = None
    """Training tokens for each parameter of a scaled model; null: 20 (2203.15556). A search that gives its candidates
    more is told so."""
    window_scale: PositiveFloat | None = None
    """Windows of a scaled model, as so many times the root of the sequence's length; null: they grow with that root."""
    rope_theta_default: Annotated[float, Field(gt=1.0)] = 10_000.0
    """The base of RoPE that `rope_reset` goes back to."""
    compute_penalty_weight: NonNegativeFloat = 0.0
    """The weight of FLOPs per token, the fewer the better, beside `evolution.weights` and as those, whoever breeds; 0:
    none."""
