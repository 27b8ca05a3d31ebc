"""Update rules, and which parameters they decay."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.blueprint.tensors import specs
from morphogen.errors import InputError
from morphogen.experiment import Train
from morphogen.inherit.checkpoint import YOUNG, Young
from morphogen.inherit.descent import Moments
from morphogen.network import LanguageModel
from morphogen.parts.contract.tensors import Spec, decays, moments
from morphogen.training.holding import Hold
from morphogen.training.saved import Saved
from morphogen.training.transfer import factors

#: Devices on which torch has AdamW as one kernel.
FUSED = frozenset({"cpu", "cuda"})


class Lion(torch.optim.Optimizer):
    """θ ← θ − lr·(sign(β₁m + (1−β₁)g) + λθ); m ← β₂m + (1−β₂)g. Ref: arXiv 2302.06675, algorithm 2.

    One moment, in the parameter's shape. Its rate wants to be 3 to 10 times smaller than AdamW's.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand."""
        if closure is not None:
            raise TypeError("Lion takes no closure")
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                moment: Tensor = state["exp_avg"]
                direction = torch.lerp(parameter.grad, moment, beta1).sign_()
                parameter.mul_(1.0 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                moment.lerp_(parameter.grad, 1.0 - beta2)


#: What each optimizer keeps of a parameter. Muon is not in every torch.
KINDS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    Lion: {"exp_avg"},
} | ({torch.optim.Muon: {"momentum_buffer"}} if hasattr(torch.optim, "Muon") else {})


@dataclass
class Cohort:
    """Entries that came to be at once. Their steps are `multiplier` times as long for good, and rise to that over
    `warmup` steps, of which `taken` are behind them: evenly, or by the square where they came in the midst of a
    training. masks: where they are, by parameter."""

    multiplier: float
    warmup: int
    taken: int
    masks: dict[str, Tensor]
    squared: bool = False

    @property
    def factor(self) -> float:
        """What the next step is scaled by."""
        share = min(1.0, (self.taken + 1) / (self.warmup + 1))
        return self.multiplier * (share * share if self.squared else share)

    @property
    def grown_up(self) -> bool:
        """Whether its factor stays as it is."""
        return self.taken >= self.warmup


def on_device(parameter: Tensor, moment: Tensor) -> Tensor:
    """A parameter's moment, where the parameter is."""
    return moment.to(parameter.device)


class Updater:
    """One or two torch optimizers stepped as one. Each parameter group keeps its own rate; a step scales them all.

    names: of the parameters, by which their moments are known outside.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], names: Mapping[Tensor, str]) -> None:
        self.optimizers = optimizers
        self._names = names
        self._groups = [(group, float(group["lr"])) for optimizer in optimizers for group in optimizer.param_groups]
        self._cohorts: list[Cohort] = []
        self._hold: Hold | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every parameter it updates."""
        return [parameter for group, _ in self._groups for parameter in group["params"]]

    def state_tensors(self) -> list[Tensor]:
        """Moments, step counts, and which entries are young."""
        states = (state for optimizer in self.optimizers for state in optimizer.state.values())
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return moments + [mask for cohort in self._cohorts for mask in cohort.masks.values()]

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The state of every parameter that has one: kind -> name -> tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for kind, tensor in state.items():
                    found.setdefault(kind, {})[self._names[parameter]] = tensor
        return found

    def carried(self) -> dict[str, dict[str, Tensor]]:
        """What goes where the weights go when the model grows: the moments, and which entries are young yet."""
        return self.moments() | {f"{YOUNG}{i}": cohort.masks for i, cohort in enumerate(self._cohorts)}

    def young(self) -> list[Young]:
        """Which entries have a rate of their own yet, by growth or as new ones of a child; `adopt` takes them up."""
        cohorts = self._cohorts
        return [({name: x for name, x in vars(cohort).items() if name != "masks"}, cohort.masks) for cohort in cohorts]

    def adopt(
        self, inherited: Moments, warmup: int, *, multiplier: float = 1.0, earlier: "Updater | None" = None
    ) -> None:
        """Go on from inherited moments; entries that are new warm up over `warmup` steps on their own.

        Those are the fresh ones, and whole parameters without moments of the kinds that their optimizer keeps.
        multiplier: of the rate of fresh ones, for good. earlier: what `carried` the moments; what was young there is so
        still, with what is left of its warm-up.
        """
        moments = {kind: of for kind, of in inherited.of.items() if not kind.startswith(YOUNG)}
        fresh, unmoved = dict[str, Tensor](), dict[str, Tensor]()
        for optimizer in self.optimizers:
            kinds = KINDS[type(optimizer)]
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = self._names[parameter]
                state = {kind: of[name] for kind, of in moments.items() if name in of}
                if name in inherited.fresh:
                    fresh[name] = inherited.fresh[name].to(parameter.device)
                if state.keys() == kinds:
                    optimizer.state[parameter] = {kind: x.to(parameter.device) for kind, x in state.items()}
                else:
                    unmoved[name] = ~fresh[name] if name in fresh else torch.ones_like(parameter, dtype=torch.bool)
        trained = {self._names[parameter]: parameter for parameter in self.parameters}
        older = [
            Cohort(**numbers, masks={name: x.to(trained[name].device) for name, x in masks.items() if name in trained})
            for numbers, masks in inherited.young
        ]
        for cohort in older:  # what has not had a step yet warms up once
            unmoved |= {name: unmoved[name] & ~mask for name, mask in cohort.masks.items() if name in unmoved}
        if earlier is not None:
            older = self._still_young(earlier._cohorts, inherited.of, fresh)
        grown = earlier is not None
        found = [*older, Cohort(multiplier, warmup, 0, fresh, grown), Cohort(1.0, warmup, 0, unmoved, grown)]
        self._cohorts = [cohort for cohort in found if any(bool(mask.any()) for mask in cohort.masks.values())]

    def _still_young(
        self,
        cohorts: Sequence[Cohort],
        carried: Mapping[str, Mapping[str, Tensor]],
        fresh: Mapping[str, Tensor],
    ) -> list[Cohort]:
        """Cohorts of a model that has grown, by their masks as these were carried, without what is younger yet; the
        grown up of one rate are joined."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        found: list[Cohort] = []
        for i, cohort in enumerate(cohorts):
            masks = {name: mask.to(parameters[name].device) for name, mask in carried[f"{YOUNG}{i}"].items()}
            masks |= {name: mask & ~fresh[name] for name, mask in masks.items() if name in fresh}
            masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
            alike = (c for c in found if c.grown_up and cohort.grown_up and c.multiplier == cohort.multiplier)
            if (other := next(alike, None)) is None:
                found.append(replace(cohort, masks=masks))
            else:
                joined = {name: mask | other.masks[name] for name, mask in masks.items() if name in other.masks}
                other.masks = {**other.masks, **masks, **joined}
        return found

    def state(self) -> Saved:
        """Moments bit for bit, and which entries are young yet."""
        moments = {f"moments/{kind}/{name}": x for kind, of in self.moments().items() for name, x in of.items()}
        young = {f"{YOUNG}/{i}/{name}": x for i, cohort in enumerate(self._cohorts) for name, x in cohort.masks.items()}
        numbers = [{name: x for name, x in vars(cohort).items() if name != "masks"} for cohort in self._cohorts]
        if self._hold is None:
            return Saved(moments | young, {"cohorts": numbers, "hold": None})
        held = self._hold
        # copies: what is held is often the very mask of a cohort, and a file holds no tensor twice
        new = {f"new/{self._names[parameter]}": mask.clone() for parameter, mask in held.new.items()}
        hold = {"freeze": held.freeze_steps, "tune": held.tune_steps, "steps": held.steps}
        return Saved(moments | young | new, {"cohorts": numbers, "hold": hold})

    def restore(self, saved: Saved, cut_like: Callable[[Tensor, Tensor], Tensor] = on_device) -> None:
        """Goes on from what `state` gave. cut_like: (parameter, all of its moment) to what is kept of that here."""
        self._cohorts = [Cohort(**numbers, masks={}) for numbers in saved.plain["cohorts"]]
        for optimizer in self.optimizers:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                name = self._names[parameter]
                kept = {kind: saved.tensors.get(f"moments/{kind}/{name}") for kind in KINDS[type(optimizer)]}
                if state := {kind: cut_like(parameter, x) for kind, x in kept.items() if x is not None}:
                    optimizer.state[parameter] = state
                for i, cohort in enumerate(self._cohorts):
                    if (mask := saved.tensors.get(f"{YOUNG}/{i}/{name}")) is not None:
                        cohort.masks[name] = mask.to(parameter.device)
        self._hold = None
        if (held := saved.plain["hold"]) is not None:
            prefix = "new/"
            new = {name.removeprefix(prefix): x for name, x in saved.tensors.items() if name.startswith(prefix)}
            self.hold(new, held["freeze"], held["tune"])
            assert self._hold is not None
            self._hold.steps = held["steps"]

    def hold(self, new: Mapping[str, Tensor], freeze_steps: int, tune_steps: int) -> None:
        """For so many steps only entries that are `new` train, parameter -> where; others are held, bit for bit, and
        then come back to their full rate over `tune_steps`."""
        masks = {p: new[name].to(p.device) for p in self.parameters if (name := self._names[p]) in new}
        self._hold = Hold(self.parameters, masks, freeze_steps, tune_steps)

    @property
    def frozen(self) -> bool:
        """Whether what is old of the model is held as it is."""
        return self._hold is not None and self._hold.frozen

    def hold_gradients(self) -> None:
        """Drops the gradients of what is held; after the backward pass, before the gradients' norm is taken."""
        if self._hold is not None:
            self._hold.drop_gradients()

    def step(self, scale: float) -> None:
        """Update at `scale` × the base rates, then drop the gradients."""
        for group, lr in self._groups:
            group["lr"] = lr * scale
        named = {name: parameter for parameter, name in self._names.items()} if self._cohorts else {}
        scaled = [(named[name], x, c.factor) for c in self._cohorts if c.factor != 1.0 for name, x in c.masks.items()]
        before = {parameter: parameter.detach().clone() for parameter, _, _ in scaled}
        if self._hold is None:
            self._update()
        else:
            self._hold.around(self._update, self._state_of)
            self._hold = None if self._hold.over else self._hold
        with torch.no_grad():
            for parameter, young, factor in scaled:
                parameter.copy_(torch.where(young, torch.lerp(before[parameter], parameter, factor), parameter))
        for cohort in self._cohorts:
            cohort.taken += 1
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.grown_up or cohort.multiplier != 1.0]

    def _update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _state_of(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        """What an optimizer keeps of a parameter; nothing before its first step."""
        for optimizer in self.optimizers:
            if parameter in optimizer.state:
                found: Mapping[str, Any] = optimizer.state[parameter]
                return found
        return {}


def moments_kept(train: Train) -> Callable[[Spec], int]:
    """How many numbers are kept for every entry of a parameter: the optimizer's moments, and an average where there is
    one."""
    averaged = int(train.schedule == "constant")

    return lambda spec: moments(spec, train.optimizer.name) + averaged


def split_parameters(model: LanguageModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Every trainable parameter exactly once: (decayed, not decayed), told apart by the parts' specs."""
    table = specs(model.blueprint)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (decayed if decays(table[name][2]) else plain).append(parameter)
    return decayed, plain


def make_updater(model: LanguageModel, train: Train) -> Updater:
    """The optimizer that `train.optimizer` names, over the model's trainable parameters.

    AdamW (arXiv 1711.05101) runs fused on CPU and CUDA. Muon (see torch.optim.Muon) takes the decayed 2-D matrices at
    AdamW's scale of update (arXiv 2502.16982), AdamW the rest. InputError where this torch has no Muon.
    """
    chosen = train.optimizer
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    lr = train.lr if chosen.lr is None else chosen.lr
    if lr == "auto":
        raise InputError("train.lr: got 'auto', which has to be found before anything is trained")
    weight_decay = train.weight_decay if chosen.weight_decay is None else chosen.weight_decay
    decayed, plain = split_parameters(model)
    table = specs(model.blueprint)
    carried = factors(model.blueprint, train.base_dim)
    rates = {parameter: (table[name][2].rate, carried[name]) for parameter, name in names.items()}

    def at_rates(parameters: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
        """A group for every rate; scalars apart, which several processes do not cut as they do the rest."""
        found: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for parameter in parameters:
            found.setdefault((*rates[parameter], parameter.dim() == 0), []).append(parameter)
        return [
            {"params": of, "weight_decay": decay / factor, "lr": lr * rate * factor}
            for (rate, factor, _), of in found.items()
        ]

    def groups(matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [*at_rates(matrices, weight_decay), *at_rates(plain, 0.0)]

    if chosen.name == "lion":
        return Updater([Lion(groups(decayed), lr, chosen.betas, weight_decay)], names)

    def adamw(matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
        fused = model.emb.weight.device.type in FUSED
        return torch.optim.AdamW(groups(matrices), lr=lr, betas=chosen.betas, eps=chosen.eps, fused=fused)

    if chosen.name == "adamw":
        return Updater([adamw(decayed)], names)
    if not hasattr(torch.optim, "Muon"):
        raise InputError(f"train.optimizer.name: got 'muon', which needs torch 2.9; this is {torch.__version__}")
    hidden = [parameter for parameter in decayed if parameter.dim() == 2]
    muon = torch.optim.Muon(
        at_rates(hidden, weight_decay), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Updater([muon, adamw([parameter for parameter in decayed if parameter.dim() != 2])], names)
