"""Several processes for one training, on this machine: started by torchrun's own launcher, which begins them anew from
the last checkpoint when one of them dies."""

import logging
import os
import queue
import signal
from collections.abc import Callable
from multiprocessing.managers import SyncManager
from threading import Thread
from typing import Any, NamedTuple

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from morphogen.errors import MorphogenError, RunError
from morphogen.training.distributed import Ranks, joined_up, own_device
from morphogen.training.forking import forking
from morphogen.training.news import News, Observer
from morphogen.training.terms import Outcome

#: What the processes' server imports before it forks them: with what cuts a model up, which takes as long as torch.
PRELOADED = ["morphogen.trainings", "morphogen.training.launching", "torch.distributed.fsdp", "torch._dynamo"]
#: How often all processes are begun anew after one of them has died.
RESTARTS = 3
#: A dead process is seen after about so many seconds.
WATCH_SECONDS = 0.2


class Failed(NamedTuple):
    """What went wrong in a process, in words for the user."""

    kind: type[MorphogenError]
    text: str


#: What every process does: (its place among them, its device, whom the first tells) to how it ended.
Work = Callable[[Ranks, str, Observer], Outcome]


def together(work: Work, processes: int, device: str, observer: Observer) -> Outcome:
    """Has so many processes carry out one training, and hands on what the first of them tells.

    Raises:
        MorphogenError: One of them raised it.
        RunError: They died more often than they were begun anew.
        KeyboardInterrupt: They were asked to end; what the observer raises ends them too, and is raised.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would print tracebacks
    with SyncManager() as manager:
        told: queue.Queue[Any] = manager.Queue()
        failed: list[Failed | Exception] = []
        reader = Thread(target=_hand_on, args=(told, observer, failed), daemon=True)
        reader.start()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            rdzv_configs={"is_host": True},
            local_addr="127.0.0.1",
            max_restarts=RESTARTS,
            monitor_interval=WATCH_SECONDS,
            start_method=forking(PRELOADED).get_start_method(),
            run_id=f"morphogen-{os.getpid()}",
        )
        try:
            found: dict[int, Outcome | Failed] = elastic_launch(config, _rank)(work, device, told)
        except SignalException:
            raise next((one for one in failed if isinstance(one, Exception)), KeyboardInterrupt()) from None
        except ChildFailedError as error:
            raise RunError(
                f"a process of the training died more than {RESTARTS} times: {_why(error)}; give the command again "
                "with --resume to go on from the last checkpoint"
            ) from None
        finally:
            told.put(None)
            reader.join()
    wrong = [*failed, *(one for one in found.values() if isinstance(one, Failed))]
    if wrong:
        raise wrong[0].kind(wrong[0].text) if isinstance(wrong[0], Failed) else wrong[0]
    outcome = found[0]
    assert isinstance(outcome, Outcome)
    return outcome


def _rank(work: Work, device: str, told: "queue.Queue[Any]") -> Outcome | Failed:
    """One process. What the user has to know of is told rather than raised: beginning anew would not help."""
    # workers of a search, which do not hear it, may have begun the server that this one is from
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    place = own_device(device)
    try:
        with joined_up(place) as ranks:
            return work(ranks, str(place), told.put if ranks.first else _deaf)
    except MorphogenError as error:
        failure = Failed(type(error), str(error))
        told.put(failure)
        return failure


def _deaf(news: News) -> None:
    """What only the first process tells."""


def _hand_on(told: "queue.Queue[Any]", observer: Observer, failed: list[Failed | Exception]) -> None:
    """News as they come, until there is None. What the observer raises is kept, and ends the processes as a signal
    does, so that there is a checkpoint; it is told of nothing more."""
    deaf = False
    while (news := told.get()) is not None:
        if isinstance(news, Failed):
            failed.append(news)
        elif not deaf:
            try:
                observer(news)
            except Exception as error:
                deaf = True
                failed.append(error)
                os.kill(os.getpid(), signal.SIGTERM)


def _why(error: ChildFailedError) -> str:
    """What became of the process that died first."""
    _, first = error.get_first_failure()
    told = first.message["message"] if isinstance(first.message, dict) else first.message
    return first.signal_name() if first.exitcode < 0 else str(told).strip().partition("\n")[0]
