"""Texts are not parsed twice, in the fast suite: reading YAML takes long, and the same text gives the same tree."""

import pickle
from collections.abc import Callable
from typing import Any


class Reading:
    """Parses every text once, and then gives copies of its tree. Texts that are refused are parsed again."""

    def __init__(self, compose: Callable[[str, str], Any]) -> None:
        self.compose = compose
        self._known: dict[str, bytes] = {}

    def __call__(self, text: str, file: str) -> Any:
        """As `blueprint.bounded.compose`."""
        if "&" in text or "<<" in text:  # what stands in several places of a tree is not for copies
            return self.compose(text, file)
        if text in self._known:
            return pickle.loads(self._known[text])
        tree = self.compose(text, file)
        self._known[text] = pickle.dumps(tree)  # before anybody changes it
        return tree
