"""What a timing depends on beside the subnet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a timing depends on beside the architecture; only timings of the same setup are reused.

    Attributes:
        batch: images at once.
        threads: CPU threads; 0 on a GPU.
        runtime, runtime_version: what executes the network.
        precision: ``fp32`` and the like.
        machine: the CPU's name.
        graph: digest of the reference subnet's exported graph: what another exporter writes has other timings. Empty where the
            timings are not reused by a later version.
    """

    batch: int
    threads: int
    runtime: str
    runtime_version: str
    precision: str
    machine: str
    graph: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; with a ``graph`` it says that what was timed so is ``measured``, an empty one is left out."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "graph"}
        return {**fields, "graph": self.graph, "kind": "measured"} if self.graph else fields
