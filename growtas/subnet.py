"""A subnet: one architecture of a search space, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import SubnetError, brief
from growtas.fields import above_zero
from growtas.files import parse_json, read_text

_MOST_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class Subnet:
    """One architecture: an embedding width for the whole network, and heads and MLP ratio for each block.

    A subnet is frozen and hashable, so that it can be an argument, a dictionary key and a line of a journal.
    :meth:`growtas.space.SearchSpace.validate` checks whether a space contains it.

    Attributes:
        embed_dim: channels of the token embedding, the same in every block.
        num_heads: number of attention heads of each block; the length is the depth.
        mlp_ratio: hidden width of each block's MLP divided by ``embed_dim``.
    """

    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "embed_dim", above_zero("embed_dim", self.embed_dim, int, SubnetError))
        object.__setattr__(self, "num_heads", tuple(above_zero("num_heads", h, int, SubnetError) for h in self.num_heads))
        object.__setattr__(self, "mlp_ratio", tuple(above_zero("mlp_ratio", r, float, SubnetError) for r in self.mlp_ratio))
        if len(self.num_heads) > _MOST_BLOCKS:
            raise SubnetError(f"num_heads has {len(self.num_heads):,} entries; at most {_MOST_BLOCKS} blocks are legal")
        if not self.num_heads or len(self.num_heads) != len(self.mlp_ratio):
            raise SubnetError(
                f"num_heads and mlp_ratio must have one entry for each block, and at least one; "
                f"they have {len(self.num_heads)} and {len(self.mlp_ratio)} entries"
            )

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.num_heads)

    def hidden_dim(self, block: int) -> int:
        """Returns the hidden width of a block's MLP: ``int(embed_dim * mlp_ratio)``, rounded as in AutoFormer."""
        return int(self.embed_dim * self.mlp_ratio[block])

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form: ``depth``, ``embed_dim``, and the lists ``num_heads`` and ``mlp_ratio``."""
        return {
            "depth": self.depth,
            "embed_dim": self.embed_dim,
            "num_heads": list(self.num_heads),
            "mlp_ratio": list(self.mlp_ratio),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "subnet") -> Subnet:
        """Reads the form of :meth:`to_dict`; other keys (costs, accuracy) are ignored.

        Raises:
            SubnetError: A key is missing, a type is wrong, or ``depth`` is not the length of the lists.
        """
        if not isinstance(data, Mapping):
            raise SubnetError(f"{source}: a subnet is a JSON object with embed_dim, num_heads and mlp_ratio")
        missing = [key for key in ("embed_dim", "num_heads", "mlp_ratio") if key not in data]
        if missing:
            raise SubnetError(f"{source}: {missing[0]} is missing; a subnet has depth, embed_dim, num_heads and mlp_ratio")
        for key in ("num_heads", "mlp_ratio"):
            if not isinstance(data[key], list | tuple):
                raise SubnetError(f"{source}: {key} is {brief(data[key])}; it must be a list with one entry for each block")
        try:
            subnet = cls(data["embed_dim"], tuple(data["num_heads"]), tuple(data["mlp_ratio"]))
        except SubnetError as error:
            raise SubnetError(f"{source}: {error}") from None
        if data.get("depth", subnet.depth) != subnet.depth:
            raise SubnetError(f"{source}: depth is {brief(data['depth'])}, but num_heads and mlp_ratio have {subnet.depth} entries")
        return subnet

    @classmethod
    def load(cls, path: str | Path) -> Subnet:
        """Reads a subnet file: JSON with the fields of a subnet, either at the top level or under ``subnet``.

        Raises:
            SubnetError: The file is missing, is not JSON, or does not contain a subnet.
        """
        data = parse_json(read_text(Path(path), f"{path}: the subnet file", SubnetError), f"{path}:", SubnetError)
        if isinstance(data, Mapping) and isinstance(data.get("subnet"), Mapping):
            data = data["subnet"]
        return cls.from_dict(data, source=str(path))

    def __str__(self) -> str:
        heads = "".join(map(str, self.num_heads)) if max(self.num_heads) < 10 else "-".join(map(str, self.num_heads))
        ratios = "-".join(f"{ratio:g}" for ratio in self.mlp_ratio)
        return f"embed {self.embed_dim}, depth {self.depth}, heads {heads}, mlp {ratios}"
