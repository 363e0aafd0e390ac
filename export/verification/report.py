"""The results of verifying finished artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import DeviceError, GrowtasError, ParityError
from growtas.export.graph.tensors import HalfRange
from growtas.export.verification.agreement import Verification
from growtas.export.verification.bisect import Bisection
from growtas.runs import Run


@dataclass(frozen=True, kw_only=True)
class ArtifactVerification:
    """The result of verifying one artifact.

    Attributes:
        path, precision: the artifact.
        problem: why it failed, one sentence; None where it passed or was not run.
        not_run_because: why it can't be run on this machine.
        verification, half_range, bisection: what was measured, as far as it came.
        no_bisection_because: why ``bisect`` was in vain.
    """

    path: Path
    precision: str
    problem: str | None = None
    not_run_because: str | None = None
    verification: Verification | None = None
    half_range: HalfRange | None = None
    bisection: Bisection | None = None
    no_bisection_because: str | None = None

    @property
    def passed(self) -> bool | None:
        """None where it was not run and nothing else was wrong."""
        return False if self.problem else (None if self.not_run_because else True)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "passed": self.passed,
            "problem": self.problem,
            "not_run_because": self.not_run_because,
            "verification": self.verification and self.verification.to_dict(),
            "half_range": self.half_range and self.half_range.to_dict(),
            "bisection": self.bisection and self.bisection.to_dict(),
            "no_bisection_because": self.no_bisection_because,
        }


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The results of verifying artifacts, with the run or the other artifact that they were compared with."""

    run: Run | None
    against: Path | None
    artifacts: tuple[ArtifactVerification, ...]

    @property
    def error(self) -> GrowtasError | None:
        """A ParityError where an artifact failed, a DeviceError where none could be run, None otherwise."""
        problems = [result.problem for result in self.artifacts if result.problem]
        if problems:
            several = f"{len(problems)} of {len(self.artifacts)} artifacts failed; " if len(problems) > 1 else ""
            return ParityError(f"{several}{problems[0]}")
        first = self.artifacts[0]
        if all(result.not_run_because for result in self.artifacts):
            return DeviceError(f"nothing was verified: {first.path.name} can't be run here: {first.not_run_because}")
        return None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "run": str(self.run.path) if self.run else None,
            "against": str(self.against) if self.against else None,
            "passed": self.error is None,
            "artifacts": [result.to_dict() for result in self.artifacts],
        }
