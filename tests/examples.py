"""How many examples Hypothesis draws: few in the fast suite, all of them in `make test-slow`."""

from hypothesis import settings

#: Profile -> examples of a test that does not say how many. conftest.py registers them.
PROFILES = {"fast": 25, "thorough": 100}


def up_to(most: int, fast: int | None = None) -> int:
    """So many in `make test-slow`. fast: how many in the fast suite; a quarter when None."""
    if settings().max_examples == PROFILES["thorough"]:
        return most
    return max(3, most // 4) if fast is None else fast
