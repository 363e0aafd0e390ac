import os
import subprocess
import sys

CODE = """
import resource
from growtas.allocator import keep_memory
import torch
torch.set_num_threads(1)
def faults():
    for _ in range(15):
        torch.ones(10_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
left = faults()
keep_memory()
print(left, faults())
"""


def _faults(**environment):
    """Page faults without and with the setting."""
    # Huge pages off: they hide the faults that the threshold saves.
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", **environment}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    left, kept = done.stdout.splitlines()[-1].split()
    return int(left), int(kept)


def test_freed_memory_is_kept():
    # 40 MB are 9,766 pages; glibc on its own maps and unmaps a block of this size every time.
    left, kept = _faults()
    assert left > 20 * 9_000
    assert kept < 2_000


def test_what_the_environment_says_counts():
    assert _faults(MALLOC_MMAP_THRESHOLD_="1000000")[1] > 20 * 9_000
