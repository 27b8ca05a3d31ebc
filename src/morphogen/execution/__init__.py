"""Executors: what carries jobs out, in process, in a pool of processes, or on a cluster."""

from morphogen.data.prepare import PreparedData
from morphogen.errors import InputError
from morphogen.execution.base import IN_PROCESS, NO_LIMITS, Execution, Executor, Limits
from morphogen.execution.local import InProcess

__all__ = ["IN_PROCESS", "Execution", "Executor", "InProcess", "Limits", "open_executor"]


def open_executor(execution: Execution, prepared: PreparedData) -> Executor:
    """The executor asked for. InputError where ray is not installed or its cluster cannot be reached.

    In process unless there are workers or limits: only a process of its own can be ended.
    """
    if execution.executor == "ray":
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
