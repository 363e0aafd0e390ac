"""The architecture of a static ViT: a subnet, and the sizes of its images, patches and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import CheckpointError
from growtas.space import SearchSpace
from growtas.subnet import Subnet


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A complete, static architecture.

    Attributes:
        subnet: width, heads and MLP ratios.
        image_size, patch_size, in_chans: input geometry in pixels.
        num_classes: outputs of the head; 0 for none (features only).
        head_dim: channels of a head.
        max_relative_position: clipping distance of the relative position; None builds a ViT without it.
    """

    subnet: Subnet
    image_size: int
    patch_size: int
    in_chans: int
    num_classes: int
    head_dim: int
    max_relative_position: int | None

    @property
    def grid_size(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def geometry(self) -> dict[str, Any]:
        """Everything but the subnet, by the names that a space has for it too."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "subnet"}

    @classmethod
    def of(cls, space: SearchSpace, subnet: Subnet) -> Architecture:
        """The architecture of a subnet of a space.

        Raises:
            SubnetError: the subnet exceeds the space's bounds.
        """
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "subnet"]
        return cls(subnet=space.validate(subnet), **{field: getattr(space, field) for field in fields})

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, read back by :meth:`from_dict`."""
        return {"subnet": self.subnet.to_dict(), **self.geometry}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "architecture") -> Architecture:
        """Rebuilds an architecture from its JSON form.

        Raises:
            CheckpointError: a key is missing or unknown.
            SubnetError: the subnet is not well formed.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            fields = sorted(names ^ set(data)) if isinstance(data, Mapping) else ["everything"]
            raise CheckpointError(f"{source}: not an architecture; missing or unknown: {', '.join(fields)}")
        return cls(**{**data, "subnet": Subnet.from_dict(data["subnet"], source=source)})
