"""Figures of probes, of models whose answers are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from morphogen.availability import Available, check_figures
from morphogen.data.probes import Probe
from morphogen.errors import DivergedError, InputError
from morphogen.estimates import Estimate, standard_error
from morphogen.experiment import Experiment
from morphogen.figures import find
from morphogen.foresight import nominal
from morphogen.knobs import knobs
from morphogen.metrics.probing import SEQUENCES, answers, figures_of, questions

VOCAB = 40


class Foreseeing(nn.Module):
    """Gives logits by a rule: (the next token, its place, the sequence's length) to logits_V. Of the last it is told by
    the probe, since it sees only what is before."""

    def __init__(self, probe: Probe, rule: Callable[[int, int, int], Tensor]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.rule = rule
        self.known = {}
        for length in probe.asked_at:
            for one in questions(probe, length):
                self.known[tuple(one.ids[:-1].tolist())] = one.ids.tolist()

    def forward(self, ids_BT: Tensor) -> Tensor:
        rows = [self.known[tuple(row)] for row in ids_BT.tolist()]
        told = [torch.stack([self.rule(row[t + 1], t, len(row) - 1) for t in range(len(row) - 1)]) for row in rows]
        return torch.stack(told)


def certain(token: int) -> Tensor:
    return 30.0 * nn.functional.one_hot(torch.tensor(token), VOCAB).float()


def of(probe: Probe, rule: Callable[[int, int, int], Tensor]) -> dict[str, float]:
    model = Foreseeing(probe, rule)
    return figures_of(probe, {n: answers(model, probe, n, batch_size=16) for n in probe.asked_at})


def test_accuracy_by_length_and_depth_of_one_that_knows_only_long_sequences() -> None:
    probe = Probe(2, 0.0, 24, VOCAB, "passkey", "key", (24, 48))
    found = of(probe, lambda token, _, length: certain(token if length == 48 else 0))
    assert found["acc_key_len_24"] == 0.0
    assert found["acc_key_len_48"] == 1.0
    assert found["acc_key"] == 0.5
    assert found["chance_key"] == 1 / 20
    depths = {name for name in found if "depth" in name}
    assert depths == {f"acc_key_len_{n}_depth_{d}" for n in (24, 48) for d in (0, 20, 40, 60, 80)}
    assert all(value == (1.0 if "len_48" in name else 0.0) for name, value in found.items() if name in depths)


def test_every_length_is_asked_questions_of_its_own_and_that_of_training_those_that_it_always_was() -> None:
    probe = Probe(2, 0.0, 24, VOCAB, "passkey", "key", (24, 48))
    assert all((one.ids == probe.sequence(2, n).ids).all() for n, one in enumerate(questions(probe, 24)))
    keys = {n: [tuple(one.ids[one.asked + 1].tolist()) for one in questions(probe, n)] for n in (24, 48, 96)}
    assert all(sum(map(tuple.__eq__, keys[24], keys[n])) < SEQUENCES // 4 for n in (48, 96))


def test_one_that_knows_what_may_be_an_answer_stands_at_chance_and_its_error_says_so() -> None:
    probe = Probe(3, 0.0, 40, VOCAB, "passkey", "passkey")
    generator = torch.Generator().manual_seed(1)
    upper_V = torch.where(torch.arange(VOCAB) < 20, -math.inf, 0.0)
    found = of(probe, lambda *_: upper_V + 1e-3 * torch.rand(VOCAB, generator=generator))
    value = found["acc_passkey"]
    assert isinstance(value, Estimate)
    error = standard_error(value.influence_U) or 0.0
    assert abs(value - found["chance_passkey"]) < 3 * error
    assert 0.5 < error / math.sqrt(0.05 * 0.95 / (3 * SEQUENCES)) < 2.0
    assert found["nll_passkey"] == pytest.approx(math.log(20), rel=1e-2)
    meaning = find("acc_passkey_len_40_depth_20")
    assert meaning is not None
    assert meaning.chance_of("acc_passkey_len_40_depth_20") == "chance_passkey"


def test_errors_hold_where_sequences_have_unlike_numbers_of_questions() -> None:
    probe = Probe(4, 0.0, 47, VOCAB, "noisy_recall", "noisy")
    asked = [len(probe.sequence(2, number).asked) for number in range(SEQUENCES)]
    assert len(set(asked)) > 3
    value = of(probe, lambda token, place, _: certain(token if place % 3 else 0))["acc_noisy"]
    assert isinstance(value, Estimate)
    assert len(value.influence_U) == SEQUENCES
    assert value.influence_U.sum() == pytest.approx(0.0, abs=1e-9)


def test_sums_give_a_perplexity_of_their_digits() -> None:
    probe = Probe(2, 0.0, 40, VOCAB, "math", "math")
    found = of(probe, lambda *_: torch.where(torch.arange(VOCAB) < 10, 0.0, -math.inf))
    assert found["ppl_math"] == pytest.approx(10.0)
    assert not [name for name in found if "depth" in name]
    with pytest.raises(DivergedError, match="probe:math is nan"):
        of(probe, lambda *_: torch.full((VOCAB,), math.nan))


def experiment(*shards: object, positions: int | None = None, **objectives: str) -> Experiment:
    emb = {"dim": 8} if positions is None else {"dim": 8, "positions": positions}
    text = {"source": "stdlib-code"}
    return Experiment.model_validate(
        {
            "model": {"emb": emb, "blocks": [{"ffn": {"kind": "dense", "hidden": 8}}]},
            "data": {"seq_len": 64, "shards": [text], "eval_shards": [text, *shards]},
            "evolution": {"objectives": {"bpb": "min", **objectives}},
        }
    )


def test_figures_of_probes_can_be_objectives_where_there_is_the_probe() -> None:
    passkey = {"source": "probe:passkey", "lengths": [64, 128]}
    made = experiment(passkey, acc_passkey="max", acc_passkey_len_128="max", acc_passkey_len_64_depth_40="max")
    check_figures(made, nominal(made)[0])
    for name in ("acc_passkey_len_256", "long_recall", "ppl_math", "acc_math"):
        made = experiment(passkey, **{name: "max"})
        with pytest.raises(Exception, match=rf"evolution\.objectives\.{name}: got '{name}'"):
            check_figures(made, nominal(made)[0])


def test_every_probe_is_asked_at_its_own_lengths_and_by_depth_only_where_it_has_any() -> None:
    short, long = {"source": "probe:passkey", "lengths": [64]}, {"source": "probe:induction", "lengths": [128]}
    made = experiment(short, long, {"source": "probe:math"}, acc_math_len_64="max", ppl_math="min", acc_passkey="max")
    check_figures(made, nominal(made)[0])
    root = Available(made, nominal(made)[0]).root
    of_length = {name for name in root if name.startswith("acc_") and "_len_" in name and "_depth_" not in name}
    assert of_length == {"acc_passkey_len_64", "acc_induction_len_128", "acc_math_len_64"}
    deep = {name.partition("_len_")[0] for name in root if "_depth_" in name}
    assert deep == {"acc_passkey", "acc_induction"}
    assert not [name for name in root if "<" in name]
    for name in ("acc_passkey_len_128", "acc_induction_len_64_depth_0", "acc_math_len_64_depth_20", "long_recall"):
        made = experiment(short, long, {"source": "probe:math"}, **{name: "max"})
        with pytest.raises(InputError, match=rf"evolution\.objectives\.{name}: got '{name}'"):
            check_figures(made, nominal(made)[0])


def test_a_probe_longer_than_the_learned_positions_is_refused_at_its_place() -> None:
    made = experiment({"source": "probe:passkey", "lengths": [64, 128]}, positions=64)
    (remark,) = [remark for remark in knobs(made) if remark.refused]
    assert remark.loc == ("data", "eval_shards", 1, "lengths", 1)
    assert remark.said.startswith("is 128, but model.emb.positions is 64")
