"""Under which names a checkpoint holds the tensors of a model, and how several of them make one.

Checkpoints on the hub have kept the names of older classes; transformers' own table of conversions is read, not
another one written.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from morphogen.errors import InputError
from morphogen.parts.foreign.donors.weights import Weights


class Names:
    """The tensors of a model, found in its checkpoint."""

    def __init__(self, weights: Weights, model: Any, source: str) -> None:
        """Looks them up; nothing is read.

        Args:
            weights: The checkpoint.
            model: The model, on the meta device.
            source: What messages call it by.
        """
        self._weights, self._model, self._source = weights, model, source
        self._wanted = model.state_dict()
        conversions = get_model_conversion_mapping(model)
        self._renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        self._converters = [each for each in conversions if isinstance(each, WeightConverter)]
        #: What a conversion makes first -> the pattern and the name of each tensor that goes into it.
        self._made: dict[str, list[tuple[str, str]]] = {}
        #: A tensor -> what it lies in: the name in the checkpoint, or what a conversion makes first.
        self._homes: dict[str, str] = {}
        left = [name for name in weights if not self._place(name)]
        self._homes = self._within(left) | self._homes
        for target, tied in model.all_tied_weights_keys.items():
            if target not in self._homes and tied in self._homes:
                self._homes[target] = self._homes[tied]

    def _place(self, name: str) -> bool:
        """Enters a tensor of the checkpoint under what the model calls it. False for one that it does not have."""
        prefix = self._model.base_model_prefix
        found, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._wanted)
        if found not in self._wanted:
            return False
        if pattern is None:
            self._homes[found] = name
        else:
            self._made.setdefault(found, []).append((pattern, name))
            self._homes.update(dict.fromkeys(self._targets(found, pattern), found))
        return True

    def _within(self, names: list[str]) -> dict[str, str]:
        """Where the tensors of a language model are that lies in another: under the start that most of them have."""
        by_start: dict[str, dict[str, str]] = {}
        for name in names:
            for rest in _rests(name):
                under = (rest, f"{self._model.base_model_prefix}.{rest}")
                if found := next((each for each in under if each in self._wanted), None):
                    by_start.setdefault(name.removesuffix(rest), {})[found] = name
                    break
        return max(by_start.values(), key=len, default={})

    def _targets(self, first: str, pattern: str) -> Iterator[str]:
        """All that a conversion makes, whose first is given."""
        targets = self._converter(pattern).target_patterns
        yield from (first.replace(targets[0], target, 1) for target in targets)

    def _converter(self, pattern: str) -> WeightConverter:
        return next(each for each in self._converters if pattern in each.source_patterns)

    def has(self, names: list[str]) -> bool:
        """Whether the checkpoint has all of these."""
        return all(name in self._homes for name in names)

    def stored(self, names: list[str]) -> dict[str, Tensor]:
        """What the checkpoint holds of tensors, by its own names. InputError as `read`."""
        self.check(names)
        homes = dict.fromkeys(self._homes[name] for name in names)
        keys = [key for home in homes for _, key in self._made.get(home, [("", home)])]
        return {key: self._weights[key] for key in keys}

    def check(self, names: list[str]) -> None:
        """InputError where the checkpoint lacks some of these."""
        if lacking := [name for name in names if name not in self._homes]:
            raise InputError(f"{self._source}: lacks {len(lacking)} tensors, the first of them {lacking[0]}")

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Tensors by the model's names. InputError for one that is missing, or of another shape than wanted."""
        self.check(names)
        found: dict[str, Tensor] = {}
        for name in names:
            if name in found:
                continue
            home = self._homes[name]
            found |= self._converted(home) if home in self._made else {name: self._weights[home]}
        for name in names:
            wanted, got = tuple(self._wanted[name].shape), tuple(found[name].shape)
            if got != wanted:
                raise InputError(f"{self._source}: {name} has shape {got}, expected {wanted} by its config")
        return {name: found[name] for name in names}

    def _converted(self, first: str) -> dict[str, Tensor]:
        sources = self._made[first]
        converter = deepcopy(self._converter(sources[0][0]))
        for pattern, name in sorted(sources, key=lambda source: _natural(source[1])):
            converter.add_tensor(first, name, pattern, self._weights[name])
        made: dict[str, Any] = converter.convert(first, model=self._model, config=self._model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


def _rests(name: str) -> Iterator[str]:
    while "." in name:
        _, name = name.split(".", 1)
        yield name


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(each), "") if each.isdigit() else (-1, each) for each in name.split(".")]
