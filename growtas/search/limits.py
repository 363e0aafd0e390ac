"""Hard limits on a subnet's costs, and a check before the search that some subnet can meet them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growtas.batch import SubnetBatch
from growtas.costs import count_costs_batch, macs_with_relative_position
from growtas.errors import LimitError
from growtas.latency.estimate import Conditions, Kind
from growtas.sampling import Feasible
from growtas.search.memory import activation_bytes, weight_bytes
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.units import format_bytes, format_count, format_limit, format_ms, parse_bytes, parse_count


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Inclusive upper bounds on costs that do not depend on a device; None means no limit.

    Limits on latency belong to :class:`growtas.search.targets.Target`.

    Attributes:
        max_params: number of parameters.
        max_macs: multiply-accumulates for one image, without the relative position.
        max_macs_with_relative_position: multiply-accumulates for one image, with the relative position; see
            :func:`growtas.costs.macs_with_relative_position`.
        max_activation_bytes: modelled peak memory of the activations at ``batch`` and ``precision``, in bytes.
        max_size_bytes: modelled size of the weights at ``precision``, in bytes.
        batch: number of images per batch.
        precision: precision of activations and weights.
    """

    max_params: int | None = None
    max_macs: int | None = None
    max_macs_with_relative_position: int | None = None
    max_activation_bytes: int | None = None
    max_size_bytes: int | None = None
    batch: int = 1
    precision: str = "fp32"

    @classmethod
    def parse(
        cls,
        *,
        max_params: str | int | None,
        max_macs: str | int | None,
        max_macs_with_relative_position: str | int | None,
        max_activation_memory: str | int | None,
        max_size: str | int | None,
        batch: int,
        precision: str,
    ) -> Limits:
        """Makes limits from numbers or texts such as ``6M``, ``1.3G`` and ``20MB``; see :func:`growtas.api.search`.

        Raises:
            UsageError: a text is no number with a unit; the message names the command's option.
        """

        def amount(parse: Callable[[str, str, str], int], limit: str | int | None, option: str, example: str) -> int | None:
            return parse(limit, option, example) if isinstance(limit, str) else limit

        option = "--max-macs-with-relative-position"
        return cls(
            max_params=amount(parse_count, max_params, "--max-params", "6M"),
            max_macs=amount(parse_count, max_macs, "--max-macs", "1.3G"),
            max_macs_with_relative_position=amount(parse_count, max_macs_with_relative_position, option, "1.3G"),
            max_activation_bytes=amount(parse_bytes, max_activation_memory, "--max-activation-memory", "20MB"),
            max_size_bytes=amount(parse_bytes, max_size, "--max-size", "12MB"),
            batch=batch,
            precision=precision,
        )

    def feasible(self, space: SearchSpace) -> Feasible:
        """Returns the monotone predicate that tells which subnets of a batch meet every limit."""
        limited = [(limit, costs) for limit, costs, _, _ in self.terms(space) if limit is not None]

        def predicate(batch: SubnetBatch) -> NDArray[np.bool_]:
            legal = np.ones(len(batch), bool)
            for limit, costs in limited:
                legal &= costs(batch) <= limit
            return legal

        return predicate

    def check(self, space: SearchSpace) -> None:
        """Checks that some subnet meets all limits. The smallest subnet has the lowest costs, so it decides.

        Raises:
            LimitError: no subnet does; the message names each limit that is too low and the lowest value that can be met.
        """
        smallest = SubnetBatch.from_subnets([space.smallest])
        problems = []
        for limit, costs, what, form in self.terms(space):
            if limit is not None and (lowest := float(costs(smallest)[0])) > limit:
                problems.append(_too_low(what, limit, lowest, form))
        if problems:
            raise LimitError(f"no subnet of {space.name} has {', and none has '.join(problems)}")

    def costs(self, space: SearchSpace, subnet: Subnet) -> dict[str, int]:
        """Returns one subnet's params, MACs without and with relative position, and modelled bytes of activations and weights."""
        batch = SubnetBatch.from_subnets([subnet])
        names = ("params", "macs", "macs_with_relative_position", "activation_bytes", "size_bytes")
        return {name: int(costs(batch)[0]) for name, (_, costs, _, _) in zip(names, self.terms(space), strict=True)}

    def terms(
        self, space: SearchSpace
    ) -> list[tuple[int | None, Callable[[SubnetBatch], NDArray[Any]], str, Callable[[float, int], str]]]:
        """Returns the limit, the cost function, the name and the formatter of each cost."""
        images, precision = self.batch, self.precision
        memory = f"activation memory (modelled, batch {images}, {precision})"
        return [
            (self.max_params, lambda batch: count_costs_batch(space, batch)[0], "params", format_count),
            (self.max_macs, lambda batch: count_costs_batch(space, batch)[1], "MACs", format_count),
            (
                self.max_macs_with_relative_position,
                lambda batch: macs_with_relative_position(space, batch),
                "MACs with the relative position",
                format_count,
            ),
            (self.max_activation_bytes, lambda batch: activation_bytes(space, batch, images, precision), memory, format_bytes),
            (self.max_size_bytes, lambda batch: weight_bytes(space, batch, precision), f"of weights in {precision}", format_bytes),
        ]


def check_latency(
    space: SearchSpace,
    max_ms: float | None,
    smallest_ms: float,
    kind: Kind,
    conditions: Conditions,
    *,
    unsteady: bool = False,
) -> None:
    """Checks that the smallest subnet meets a latency limit.

    Args:
        space: the search space.
        max_ms: the limit in milliseconds; None means no limit.
        smallest_ms: latency of the smallest subnet in milliseconds.
        kind: whether this latency was measured or modelled.
        conditions: device, runtime, precision and batch of the latency.
        unsteady: whether other work disturbed the measurement.

    Raises:
        LimitError: it does not meet the limit; the message states its latency.
    """
    if max_ms is not None and smallest_ms > max_ms:
        problem = _too_low(f"{kind} latency ({conditions})", max_ms, smallest_ms, format_ms)
        busy = ", measured while other work was running; on an idle machine it may be faster" if unsteady else ""
        raise LimitError(f"no subnet of {space.name} has {problem}{busy}")


def _too_low(what: str, limit: float, lowest: float, form: Callable[[float, int], str]) -> str:
    return f"at most {format_limit(limit, form)} {what}; the smallest has {form(_ceil_3_digits(lowest), 3)}"


def _ceil_3_digits(value: float) -> float:
    """Rounds up to three significant digits, so that the printed value can be met when it is used as the limit."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(round(value / step, 10)) * step
