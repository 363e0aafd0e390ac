"""The architecture of a static ViT: a subnet and its geometry (sizes of images, patches and heads)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import CheckpointError
from growtas.fields import Rule, whole
from growtas.space import SearchSpace
from growtas.subnet import Subnet

_LEGAL = {
    "image_size": whole(1, 8192),
    "patch_size": whole(1, 8192),
    "in_chans": Rule(lambda value: value in (1, 3) and not isinstance(value, bool), "1 or 3"),
    "num_classes": whole(0, 1_000_000),
    "head_dim": whole(1, 4096),
    "max_relative_position": whole(1, 8192).or_null(),
}
_DEPTH, _GRID = 1000, 512


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The complete architecture of a static ViT.

    Attributes:
        subnet: width, heads and MLP ratios.
        image_size: height and width of the images in pixels.
        patch_size: height and width of a patch in pixels.
        in_chans: number of image channels.
        num_classes: number of outputs of the head; 0 for no head (features only).
        head_dim: channels per head.
        max_relative_position: clipping distance of the relative position in patches; None for a ViT without relative position.
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
        """Number of patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def geometry(self) -> dict[str, Any]:
        """All fields but the subnet; a search space has fields of the same names."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "subnet"}

    @classmethod
    def of(cls, space: SearchSpace, subnet: Subnet) -> Architecture:
        """Returns the architecture of a subnet of a space.

        Raises:
            SubnetError: the subnet exceeds the space's bounds.
        """
        fields = [field.name for field in dataclasses.fields(cls) if field.name != "subnet"]
        return cls(subnet=space.validate(subnet), **{field: getattr(space, field) for field in fields})

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, which :meth:`from_dict` reads."""
        return {"subnet": self.subnet.to_dict(), **self.geometry}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "architecture") -> Architecture:
        """Builds an architecture from its JSON form.

        Raises:
            CheckpointError: a key is missing or unknown, or a value is not legal.
            SubnetError: the subnet is invalid.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            fields = sorted(names ^ set(data)) if isinstance(data, Mapping) else ["everything"]
            raise CheckpointError(f"{source}: this is not an architecture; missing or unknown are {', '.join(fields)[:100]}")
        for name, rule in _LEGAL.items():
            if not rule.accepts(data[name]):
                raise CheckpointError(f"{source}: {name} of the architecture is {repr(data[name])[:60]}; it must be {rule.legal}")
        if data["image_size"] % data["patch_size"]:
            raise CheckpointError(f"{source}: image_size {data['image_size']} is not a multiple of patch_size {data['patch_size']}")
        if data["image_size"] // data["patch_size"] > _GRID:
            raise CheckpointError(f"{source}: the architecture has more than {_GRID} patches per side")
        subnet = Subnet.from_dict(data["subnet"], source=source)
        if subnet.depth > _DEPTH:
            raise CheckpointError(f"{source}: the architecture has {subnet.depth} blocks; legal are up to {_DEPTH}")
        return cls(**{**data, "subnet": subnet})
