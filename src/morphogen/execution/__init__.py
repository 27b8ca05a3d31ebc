"""Executors: what carries jobs out, in process, in a pool of processes, or on a cluster."""

import os
import secrets
import sys

from morphogen.data.prepare import PreparedData
from morphogen.errors import InputError
from morphogen.execution.base import IN_PROCESS, NO_LIMITS, Checkpointing, Execution, Executor, Limits
from morphogen.execution.local import InProcess

__all__ = ["IN_PROCESS", "Execution", "Executor", "InProcess", "Limits", "open_executor"]


def open_executor(execution: Execution, prepared: PreparedData) -> Executor:
    """Opens the executor asked for, in which jobs leave checkpoints in their middle where that is asked for.

    Args:
        execution: How candidates are carried out.
        prepared: The experiment's data.

    Returns:
        An executor, which the caller closes.

    Raises:
        InputError: Ray is not installed, or its cluster cannot be reached.
    """
    executor = _opened(execution, prepared)
    if not execution.checkpoint_tokens:
        return executor
    return Checkpointing(executor, execution.checkpoint_tokens, execution.shared)


def _opened(execution: Execution, prepared: PreparedData) -> Executor:
    """The executor itself: in process unless there are workers or limits, since only a process of its own can
    be ended."""
    if execution.executor == "ray":
        if execution.address is None and "ray" not in sys.modules:
            _keep_to_this_machine()
        try:
            from morphogen.execution.ray import OnRay
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise InputError(
                "--executor ray: ray is not installed; install it with pip install 'morphogen[cluster]'"
            ) from None
        return OnRay(prepared, execution)
    if execution.workers is None and execution.limits == NO_LIMITS:
        return InProcess(prepared)
    from morphogen.execution.pool import Pool

    return Pool(prepared, execution.workers or 1, execution.limits)


def _keep_to_this_machine() -> None:
    """A Ray cluster that is started here listens on the loopback alone, and wants a token (Ray 2.52 and later) that
    nobody else knows. Ray reads these when it is first imported, so that a program which has done so chooses itself;
    what the user has set stays."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
