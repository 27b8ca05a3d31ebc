"""A server that processes are forked from: what they all import it has imported, which takes seconds."""

import multiprocessing
import multiprocessing.util
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext

#: Characters of the temporary folder; beyond them the address of a socket in it is too long.
LONGEST_TEMPORARY = 64


def forking(preloaded: Sequence[str]) -> ForkServerContext:
    """Where processes come from: a server that has some modules loaded, once, unless it runs already."""
    _keep_sockets_short()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preloaded])
    return context


def _keep_sockets_short() -> None:
    """Has multiprocessing keep its sockets in a folder of few letters: the system refuses an address beyond about 100.

    Only where the temporary folder is a long one, and once: multiprocessing stays with its first folder.
    """
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY:
        try:
            tempfile.tempdir = "/tmp" if os.access("/tmp", os.W_OK) else "/var/tmp"
            multiprocessing.util.get_temp_dir()
        finally:
            tempfile.tempdir = before
