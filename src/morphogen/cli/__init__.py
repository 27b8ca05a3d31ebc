"""The command line: thin. Each command (`commands/`) reads its arguments, calls one function, and prints.

Exit codes: 0 done, 2 bad input (one message on stderr), 130 interrupted and resumable. Nothing heavy is imported until
a command needs it.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of `morphogen`: runs one command and exits with its code."""
    from morphogen.cli.commands import app_with
    from morphogen.cli.launch import execute

    given = sys.argv[1:] if args is None else args
    execute(app_with(given[0] if given else None), "morphogen", given)
