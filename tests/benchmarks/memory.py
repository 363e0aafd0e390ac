"""Peak memory of a program, as torch's CPU allocator counts it.

The resident size of a process says as much about malloc as about the program: it holds freed memory back, rounds to huge pages,
and remembers whatever ran before. The allocator's own count of live bytes is exact, and the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(prepare: Callable[[], Callable[[], object]], *, calls: int) -> int:
    """Most tensor bytes live at once while ``prepare`` makes a program and the program is called ``calls`` times.

    Memory that was allocated before does not count, nor does scratch memory that libraries take from malloc themselves.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        program = prepare()
        for _ in range(calls):
            program()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak
