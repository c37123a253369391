"""Freed memory stays in the process: a second use of a large block faults no pages in."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from paceline.core.allocator import keep_freed
{call}
def use():
    for _ in range(20):
        torch.ones(20 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
before = use()
print(use() - before)
"""


def faults(call, **environment):
    ended = subprocess.run(
        [sys.executable, "-c", CODE.format(call=call)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(ended.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_large_blocks_are_not_faulted_in_again():
    assert faults("keep_freed()") < 1000
    assert faults("", MALLOC_MMAP_THRESHOLD_="131072") > 20_000
    assert faults("keep_freed()", MALLOC_MMAP_THRESHOLD_="131072") > 20_000, "settings of the user's own were changed"
