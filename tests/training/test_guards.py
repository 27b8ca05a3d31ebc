"""Each guard trips on what it is for, and on nothing less."""

import math

import numpy as np
import pytest

from morphogen.candidate import StopReason
from morphogen.experiment import Train
from morphogen.training.guards import CHECK_EVERY, WINDOW, Guards


def feed(
    guards: Guards, losses: list[float], norms: list[float] | float = 1.0, entropy: float = 3.0
) -> tuple[int, StopReason | None]:
    """Steps taken until a guard stopped, and its reason; entropy at every check."""
    for k, loss in enumerate(losses):
        norm = norms if isinstance(norms, float) else norms[k]
        stop = guards.observe(loss, norm, entropy if (k + 1) % CHECK_EVERY == 0 else None)
        if stop is not None:
            return k + 1, stop
    return len(losses), None


def falling(steps: int) -> list[float]:
    return [5.5 * math.exp(-k / 200) + 0.5 for k in range(steps)]


def test_a_healthy_noisy_run_is_left_alone() -> None:
    rng = np.random.default_rng(0)
    losses = [loss * (1 + 0.1 * rng.standard_normal()) for loss in falling(300)]
    guards = Guards(Train(), warmup_steps=20)
    assert feed(guards, losses, [float(n) for n in rng.uniform(0.3, 4.0, 300)]) == (300, None)
    assert not guards.nan_seen


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_a_number_that_is_not_finite_stops_at_once(loss: float, norm: float) -> None:
    guards = Guards(Train(), warmup_steps=20)
    assert guards.observe(2.0, 1.0, None) is None
    assert guards.observe(loss, norm, None) is StopReason.NOT_FINITE
    assert guards.nan_seen


def test_a_lasting_high_gradient_norm_stops_after_the_warm_up() -> None:
    guards = Guards(Train(instability_threshold=5.0), warmup_steps=20)
    assert feed(guards, falling(200), 6.0) == (20 + WINDOW, StopReason.HIGH_GRAD)


def test_high_norms_in_the_warm_up_or_as_spikes_do_not_stop() -> None:
    norms = [50.0] * 20 + [100.0 if k % 3 == 0 else 1.0 for k in range(180)]
    assert feed(Guards(Train(), warmup_steps=20), falling(200), norms) == (200, None)


def test_low_entropy_needs_its_patience_in_a_row() -> None:
    train = Train(entropy_threshold=0.5, entropy_patience=3)
    assert feed(Guards(train, 20), falling(200), entropy=0.4) == (3 * CHECK_EVERY, StopReason.LOW_ENTROPY)
    guards = Guards(train, 20)
    for entropy in [0.4, 0.4, 0.6] * 10:
        assert guards.observe(2.0 - 0.01 * guards.steps, 1.0, entropy) is None


def test_no_improve_counts_checks_without_a_new_best() -> None:
    train = Train(no_improve_patience=4)
    assert feed(Guards(train, 20), [3.0] * 500) == (5 * CHECK_EVERY, StopReason.NO_IMPROVE)


def test_improvement_smaller_than_the_tolerance_is_none() -> None:
    losses = [3.0 * (1 - 1e-5) ** k for k in range(300)]

    def stop(tolerance: float) -> StopReason | None:
        return feed(Guards(Train(no_improve_patience=4, improvement_tolerance=tolerance), 20), losses)[1]

    assert stop(1e-3) is StopReason.NO_IMPROVE
    assert stop(1e-5) is None


def test_a_loss_spike_is_recorded_but_does_not_stop() -> None:
    losses = falling(100)
    losses[60] *= 2.0
    guards = Guards(Train(), warmup_steps=20)
    assert feed(guards, losses) == (100, None)
    assert guards.loss_spike


def test_other_text_is_no_spike_and_sets_a_new_mark_to_improve_on() -> None:
    guards = Guards(Train(no_improve_patience=4), warmup_steps=20)
    assert feed(guards, [1.0] * (3 * CHECK_EVERY)) == (3 * CHECK_EVERY, None)
    guards.new_text()
    assert feed(guards, [2.5] * (4 * CHECK_EVERY)) == (4 * CHECK_EVERY, None)
    assert not guards.loss_spike
