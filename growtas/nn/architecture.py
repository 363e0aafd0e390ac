"""The architecture of a static ViT: a subnet and its geometry (sizes of images, patches and heads)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growtas.errors import CheckpointError
from growtas.fields import check_entries, whole
from growtas.space import PLAIN, PLAIN_RULES, SearchSpace, check_plain, check_size, without_defaults
from growtas.subnet import Subnet

_RULES = {
    "image_size": whole(1, 4096),
    "patch_size": whole(1, 4096),
    "in_chans": whole(1, 64),
    "num_classes": whole(0, 1_000_000),
    "head_dim": whole(1, 1024),
    "max_relative_position": whole(1, 4096).or_null(),
    **PLAIN_RULES,
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The complete architecture of a static ViT.

    Files leave out the fields after ``max_relative_position`` where they have the values of AutoFormer's network.

    Attributes:
        subnet: width, heads and MLP ratios.
        image_size: height and width of the images in pixels.
        patch_size: height and width of a patch in pixels.
        in_chans: number of image channels.
        num_classes: number of outputs of the head; 0 for no head (features only).
        head_dim: channels per head.
        max_relative_position: clipping distance of the relative position in patches; None for a ViT without relative position.
        prefix_tokens, global_pool, fc_norm, qk_norm, norm_eps: see :class:`growtas.space.SearchSpace`.
    """

    subnet: Subnet
    image_size: int
    patch_size: int
    in_chans: int
    num_classes: int
    head_dim: int
    max_relative_position: int | None
    prefix_tokens: int = PLAIN["prefix_tokens"]
    global_pool: str = PLAIN["global_pool"]
    fc_norm: bool = PLAIN["fc_norm"]
    qk_norm: bool = PLAIN["qk_norm"]
    norm_eps: float = PLAIN["norm_eps"]

    @property
    def grid_size(self) -> int:
        """Number of patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Number of absolute positions. In a plain ViT, those of the tokens before the patches are part of these tokens."""
        return self.grid_size**2 + (0 if self.max_relative_position is None else self.prefix_tokens)

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
        return {"subnet": self.subnet.to_dict(), **without_defaults(self.geometry)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "architecture") -> Architecture:
        """Builds an architecture from its JSON form.

        Raises:
            CheckpointError: a key is missing or unknown, or a value is illegal.
            SubnetError: the subnet is invalid.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, Mapping) or not names - PLAIN.keys() <= set(data) <= names:
            fields = sorted((names - PLAIN.keys()) ^ (set(data) - PLAIN.keys())) if isinstance(data, Mapping) else ["everything"]
            raise CheckpointError(f"{source}: this is not an architecture; missing or unknown are {', '.join(fields)}")
        check_entries(data, _RULES, source, CheckpointError)
        made = cls(**{**data, "subnet": Subnet.from_dict(data["subnet"], source=source)})
        if made.image_size % made.patch_size:
            raise CheckpointError(f"{source}: image_size {made.image_size} is not a multiple of patch_size {made.patch_size}")
        try:
            check_plain(made, CheckpointError)
            check_size(made, made.subnet.embed_dim, made.subnet.num_heads, made.subnet.mlp_ratio, CheckpointError)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        return made
