import os
import subprocess
import sys

CODE = """
import resource, sys
from growtas.allocator import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
import torch
torch.set_num_threads(1)
for _ in range(15):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(kind, **environment):
    # Huge pages off: they hide the faults that the threshold saves.
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", **environment}
    done = subprocess.run([sys.executable, "-c", CODE, kind], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def test_freed_memory_is_kept():
    # 40 MB are 9,766 pages; glibc on its own maps and unmaps a block of this size every time.
    assert _faults("left") > 20 * 9_000
    assert _faults("kept") < 2_000


def test_what_the_environment_says_counts():
    assert _faults("kept", MALLOC_MMAP_THRESHOLD_="1000000") > 20 * 9_000
