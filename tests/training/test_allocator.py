"""Memory between training steps, seen by what the system has to hand out. In processes of their own: settings stay."""

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import contextlib, json, resource, sys
import psutil, torch
from morphogen.training.allocator import memory_kept

def work():
    for _ in range(5):
        [torch.ones(2 * 2**20) for _ in range(16)]  # 16 times 8 MiB, freed together as after a step

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    held = [torch.ones(2**20) for _ in range(64)]
    work()
    found = faults()
    del held
    inside = psutil.Process().memory_info().rss
print(json.dumps([found, inside - psutil.Process().memory_info().rss]))
"""


def measured(how):
    """(page faults of a few rounds of large tensors, bytes given back at the end)."""
    told = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return json.loads(told.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")
def test_freed_memory_is_kept_inside_and_given_back_afterwards():
    plain, _ = measured("plain")
    kept, returned = measured("kept")
    assert kept < 0.05 * plain
    assert returned > 128 * 2**20
