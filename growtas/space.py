"""Search spaces: the possible subnets, and the size of the supernet that contains them.

The presets are AutoFormer's three spaces (the paper's Table 1) and ``micro``, which trains on two CPU cores in minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.errors import GrowtasError, SpaceError, SubnetError, brief, choices
from growtas.fields import above_zero, check_keys, flag, nearest, one_of, real, whole
from growtas.files import read_json, read_yaml
from growtas.subnet import Subnet

_BELOW = {
    "embed_dim": 16_385,
    "num_heads": 257,
    "mlp_ratio": 65,
    "depth": 257,
    "head_dim": 1_025,
    "image_size": 4_097,
    "patch_size": 4_097,
    "max_relative_position": 4_097,
}
"""Sizes above the largest legal ones. They keep a malformed file from claiming all memory; no published ViT comes near them."""
_MOST_TOKENS = 16_384
_MOST_WEIGHTS = 10e9
_SIZE = re.compile(r"-([1-9]\d{0,5})px$")
"""The suffix that :meth:`SearchSpace.resized` appends to a name."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The choices of each dimension, the supernet's bounds, and the size of the input.

    Training and search draw subnets from the choices. A subnet outside the choices but inside the bounds is legal too
    (AutoFormer-T's published subnet has mlp_ratio 3.0): it can be evaluated, costed and exported.

    Files leave out the fields after ``max_relative_position`` where they have the values of AutoFormer's network.

    Attributes:
        name: name of the space in runs and manifests.
        embed_dim: choices of the embedding width in channels, ascending.
        num_heads: choices of the number of attention heads per block, ascending.
        mlp_ratio: choices of the MLP's hidden width divided by ``embed_dim``, ascending.
        depth: choices of the number of blocks, ascending.
        max_embed_dim, max_num_heads, max_mlp_ratio, max_depth: size of the supernet; by default the largest choices.
        head_dim: channels of an attention head, independent of ``embed_dim``.
        image_size: side of the input image in pixels.
        patch_size: side of a patch in pixels, which must divide ``image_size``.
        in_chans: channels of the input image: 1 (grey) or 3 (RGB).
        num_classes: number of classes.
        max_relative_position: distance in patches beyond which relative positions are clipped. None for timm's plain ViT, which has
            no relative position; only then may the fields below differ from AutoFormer's network.
        prefix_tokens: number of tokens before the patches: the class token and registers.
        global_pool: what the head reads: the mean of the patch tokens (``avg``) or the first token (``token``).
        fc_norm: whether the last LayerNorm follows the mean, and does not precede it.
        qk_norm: whether queries and keys pass through a LayerNorm.
        norm_eps: epsilon of the LayerNorms.
        block_order: the supernet's blocks, the most important one first; a subnet of depth d runs the first d of them, in the order
            of the network. Empty for the network's own order.
        full_width_norms: whether the LayerNorms of a narrow subnet divide by the deviation that the largest width would have if the
            absent channels were zero. An import needs this where the leading channels are the principal ones.
    """

    name: str
    embed_dim: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    depth: tuple[int, ...]
    max_embed_dim: int = 0
    max_num_heads: int = 0
    max_mlp_ratio: float = 0.0
    max_depth: int = 0
    head_dim: int = 64
    image_size: int = 224
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    max_relative_position: int | None = 14
    prefix_tokens: int = 1
    global_pool: str = "avg"
    fc_norm: bool = False
    qk_norm: bool = False
    norm_eps: float = 1e-5
    block_order: tuple[int, ...] = ()
    full_width_norms: bool = False

    def __post_init__(self) -> None:
        for field in ("embed_dim", "num_heads", "mlp_ratio", "depth"):
            kind: type = float if field == "mlp_ratio" else int
            values = _choices(field, getattr(self, field), kind)
            object.__setattr__(self, field, values)
            bound = above_zero(f"max_{field}", getattr(self, f"max_{field}") or values[-1], kind, SpaceError, _BELOW[field])
            if bound < values[-1]:
                raise SpaceError(f"max_{field} is {bound:g}, below the largest choice of {field}, {values[-1]:g}")
            object.__setattr__(self, f"max_{field}", bound)
        for field in ("head_dim", "image_size", "patch_size", "in_chans", "num_classes", "max_relative_position"):
            if field != "max_relative_position" or self.max_relative_position is not None:
                object.__setattr__(self, field, above_zero(field, getattr(self, field), int, SpaceError, _BELOW.get(field, 1e6)))
        check_plain(self, SpaceError)
        order: Any = self.block_order
        if order and not _is_order(order, self.max_depth):
            raise SpaceError(
                f"block_order is {brief(order)}; it must be empty or hold each number from 0 to {self.max_depth - 1} once"
            )
        object.__setattr__(self, "block_order", tuple(order or ()))
        flag().check("full_width_norms", self.full_width_norms, SpaceError)
        if self.full_width_norms and self.max_relative_position is not None:
            raise SpaceError("full_width_norms is true, which only a space without relative position may have")
        if not isinstance(self.name, str):
            raise SpaceError(f"name is {brief(self.name)}; it must be a text")
        if self.image_size % self.patch_size:
            raise SpaceError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.in_chans not in (1, 3):
            raise SpaceError(f"in_chans is {self.in_chans}; legal are 1 (grey) and 3 (RGB)")
        check_size(self, self.max_embed_dim, (self.max_num_heads,) * self.max_depth, (self.max_mlp_ratio,) * self.max_depth)

    @property
    def grid_size(self) -> int:
        """Number of patches along a side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence: all patches and the tokens before them."""
        return self.grid_size**2 + self.prefix_tokens

    def blocks_of(self, depth: int) -> tuple[int, ...]:
        """Returns which of the supernet's blocks a subnet of a depth runs, in the order of the network."""
        return tuple(sorted(self.block_order[:depth])) if self.block_order else tuple(range(depth))

    def norm_scale(self, embed_dim: int) -> float:
        """Returns what the weights of the norms are multiplied by in a subnet of a width; see ``full_width_norms``."""
        return math.sqrt(self.max_embed_dim / embed_dim) if self.full_width_norms else 1.0

    @property
    def size(self) -> int:
        """Number of subnets that the choices define."""
        per_block = len(self.num_heads) * len(self.mlp_ratio)
        return len(self.embed_dim) * sum(int(per_block**depth) for depth in self.depth)

    @property
    def smallest(self) -> Subnet:
        """The subnet with the smallest choice in every dimension."""
        return self._uniform_subnet(0.0)

    @property
    def largest(self) -> Subnet:
        """The subnet with the largest choice in every dimension."""
        return self._uniform_subnet(1.0)

    def middle(self) -> Subnet:
        """Returns the subnet with the middle choice in every dimension (the lower one of two)."""
        return self._uniform_subnet(0.5)

    def _uniform_subnet(self, place: float) -> Subnet:
        """Returns the subnet with the choice at a place, from 0 (smallest) to 1 (largest), in every dimension."""

        def choice(values: tuple[Any, ...]) -> Any:
            return values[int(place * (len(values) - 1))]

        depth = choice(self.depth)
        return Subnet(choice(self.embed_dim), (choice(self.num_heads),) * depth, (choice(self.mlp_ratio),) * depth)

    def validate(self, subnet: Subnet, *, strict: bool = False) -> Subnet:
        """Returns the subnet if the space contains it.

        Args:
            subnet: the subnet.
            strict: require values among the choices; otherwise the supernet's bounds are enough.

        Raises:
            SubnetError: The space does not contain it; the message names the field, the value and the legal values.
        """
        checks: list[tuple[str, int | None, float]] = [("embed_dim", None, subnet.embed_dim), ("depth", None, subnet.depth)]
        checks += [("num_heads", i, value) for i, value in enumerate(subnet.num_heads)]
        checks += [("mlp_ratio", i, value) for i, value in enumerate(subnet.mlp_ratio)]
        for field, block, value in checks:
            legal, bound = getattr(self, field), getattr(self, f"max_{field}")
            if value > bound or (strict and value not in legal):
                where = field if block is None else f"{field} of block {block}"
                limit = "" if strict else f" (bound of the supernet: {bound:g})"
                names = choices(f"{choice:g}" for choice in legal)
                raise SubnetError(f"{where} is {value:g}; the choices of {self.name} are {names}{limit}")
        return subnet

    def holds(self, subnet: Subnet) -> bool:
        """Returns whether every value of the subnet is one of the choices."""
        try:
            self.validate(subnet, strict=True)
        except SubnetError:
            return False
        return True

    def replace(self, **changes: Any) -> SearchSpace:
        """Returns a copy with some fields changed, for example ``num_classes`` for a data set."""
        return dataclasses.replace(self, **changes)

    def resized(self, image_size: int) -> SearchSpace:
        """Adapts the space to another image size; the name gets the size as a suffix (``micro-112px``).

        The number of patches per side stays the same, or becomes the next larger number, up to twice as many, that divides the
        image size. ``patch_size`` follows from it, and ``max_relative_position`` grows in proportion. The costs stay the same or
        grow with the number of patches.

        Raises:
            SpaceError: No such number of patches divides the image size; the message names legal sizes near it.
        """
        if image_size == self.image_size:
            return self
        grid = self._grid_for(image_size)
        if grid is None:
            below = next((size for size in range(image_size - 1, 0, -1) if self._grid_for(size)), None)
            above = next(size for size in range(image_size + 1, 2 * image_size + 2 * self.grid_size) if self._grid_for(size))
            near = choices(size for size in (below, above) if size is not None)
            raise SpaceError(
                f"image_size is {image_size}, but {self.name} needs a size that can be divided into {self.grid_size} to "
                f"{2 * self.grid_size} patches per side, such as {near}; a YAML file with a space of your own may set other values "
                f"of image_size, patch_size and max_relative_position"
            )
        m = self.max_relative_position
        return self.replace(
            name=f"{without_size(self.name)}-{image_size}px",
            image_size=image_size,
            patch_size=image_size // grid,
            max_relative_position=m and -(-m * grid // self.grid_size),
        )

    def _grid_for(self, image_size: int) -> int | None:
        grids = range(self.grid_size, 2 * self.grid_size + 1)
        return next((grid for grid in grids if image_size % grid == 0), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON and YAML form, which :meth:`from_dict` reads."""
        return without_defaults({k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "space") -> SearchSpace:
        """Makes a space from a mapping of its fields.

        The choices of a dimension are a list, or a range such as ``{min: 192, max: 240, step: 24}``, as in the paper's Table 1.

        Args:
            data: the fields.
            source: beginning of error messages.

        Raises:
            SpaceError: A key is unknown (the message names the most similar one) or missing, or a value is wrong.
        """
        if not isinstance(data, Mapping):
            raise SpaceError(f"{source}: a search space is a mapping with embed_dim, num_heads, mlp_ratio and depth")
        check_keys(data, [field.name for field in dataclasses.fields(cls)], source, SpaceError)
        missing = [key for key in ("embed_dim", "num_heads", "mlp_ratio", "depth") if key not in data]
        if missing:
            raise SpaceError(f"{source}: {missing[0]} is missing; a space needs embed_dim, num_heads, mlp_ratio and depth")
        if isinstance(data.get("norm_eps"), str):  # YAML 1.1 reads 1e-6 as text
            with contextlib.suppress(ValueError):
                data = {**data, "norm_eps": float(data["norm_eps"])}
        try:
            return cls(**{"name": source, **data})
        except SpaceError as error:
            raise SpaceError(f"{source}: {error}") from None


def _choices(field: str, value: Any, kind: type) -> tuple[Any, ...]:
    if isinstance(value, Mapping):
        if set(value) != {"min", "max", "step"}:
            raise SpaceError(f"{field} is {brief(value)}; a range has min, max and step")
        low, high, step = (
            above_zero(f"{field}.{key}", value[key], kind, SpaceError, _BELOW[field]) for key in ("min", "max", "step")
        )
        count = (high - low) / step
        if count < 0 or abs(count - round(count)) > 1e-6 or count > 10_000:
            raise SpaceError(f"{field}: max {high:g} is not min {low:g} plus a number of steps of {step:g}")
        return tuple(low + step * i for i in range(round(count) + 1))
    if not isinstance(value, list | tuple) or not value:
        raise SpaceError(f"{field} is {brief(value)}; it must be a list of choices, or a range with min, max and step")
    values = tuple(sorted(above_zero(field, item, kind, SpaceError, _BELOW[field]) for item in value))
    if len(set(values)) != len(values):
        raise SpaceError(f"{field} has the same choice twice: {brief(list(value))}")
    return values


PLAIN_RULES = {
    "prefix_tokens": whole(0, 64),
    "global_pool": one_of("avg", "token"),
    "fc_norm": flag(),
    "qk_norm": flag(),
    "norm_eps": real(0, 1, above=True),
}
PLAIN: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(SearchSpace) if field.name in PLAIN_RULES}
"""The fields in which timm's plain ViTs differ, with their values in AutoFormer's network."""


def check_plain(geometry: Any, error: type[GrowtasError]) -> None:
    """Checks the fields of ``PLAIN`` of a search space or an architecture.

    Raises:
        GrowtasError: Of the class ``error``; a value is illegal, or does not fit the others.
    """
    for field, rule in PLAIN_RULES.items():
        value = getattr(geometry, field)
        rule.check(field, value, error)
        if geometry.max_relative_position is not None and value != PLAIN[field]:
            raise error(
                f"{field} is {value}; with a relative position only {PLAIN[field]} is legal (or set max_relative_position: null)"
            )
    if geometry.global_pool == "token" and not geometry.prefix_tokens:
        raise error("global_pool is token, but prefix_tokens is 0; the head needs a class token, or global_pool: avg")


def without_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the fields that only plain ViTs need where they have AutoFormer's values."""
    defaults = {**PLAIN, "block_order": [], "full_width_norms": False}
    return {key: value for key, value in data.items() if value != defaults.get(key, ...)}


def _is_order(order: Any, depth: int) -> bool:
    return isinstance(order, list | tuple) and all(type(item) is int for item in order) and sorted(order) == list(range(depth))


def check_size(
    geometry: Any, embed_dim: int, num_heads: Sequence[int], mlp_ratio: Sequence[float], error: type[GrowtasError] = SpaceError
) -> None:
    """Refuses a network that is too large for any machine, before its weights are allocated.

    Args:
        geometry: a search space or an architecture, for ``image_size``, ``patch_size``, ``head_dim`` and ``num_classes``.
        embed_dim: channels of the token embedding.
        num_heads: heads of each block.
        mlp_ratio: MLP ratio of each block.
        error: class of the exception.

    Raises:
        GrowtasError: Of the class ``error``; the network has too many tokens or weights.
    """
    if (tokens := (geometry.image_size // geometry.patch_size) ** 2) > _MOST_TOKENS:
        raise error(
            f"image_size {geometry.image_size} and patch_size {geometry.patch_size} make {tokens:,} patches; "
            f"at most {_MOST_TOKENS:,} are legal"
        )
    blocks = sum(4 * geometry.head_dim * heads + 2 * embed_dim * ratio for heads, ratio in zip(num_heads, mlp_ratio, strict=True))
    patches = geometry.in_chans * geometry.patch_size**2
    weights = embed_dim * (blocks + patches + tokens + geometry.num_classes)
    if weights > _MOST_WEIGHTS:
        raise error(f"the network would have {weights / 1e9:,.0f} G weights; at most {_MOST_WEIGHTS / 1e9:.0f} G are legal")


PRESETS: dict[str, SearchSpace] = {
    space.name: space
    for space in (
        SearchSpace(
            name="autoformer-t",
            embed_dim=(192, 216, 240), num_heads=(3, 4), mlp_ratio=(3.5, 4.0), depth=(12, 13, 14),
            max_embed_dim=256,
        ),
        SearchSpace(
            name="autoformer-s",
            embed_dim=(320, 384, 448), num_heads=(5, 6, 7), mlp_ratio=(3.0, 3.5, 4.0), depth=(12, 13, 14),
        ),
        SearchSpace(
            name="autoformer-b",
            embed_dim=(528, 576, 624), num_heads=(8, 9, 10), mlp_ratio=(3.0, 3.5, 4.0), depth=(14, 15, 16),
            max_embed_dim=640,
        ),
        SearchSpace(
            name="micro",
            embed_dim=(32, 48, 64), num_heads=(2, 3, 4), mlp_ratio=(2.0, 3.0, 4.0), depth=(4, 5, 6),
            head_dim=16, image_size=28, patch_size=4, num_classes=10, max_relative_position=6,
        ),
    )
}  # fmt: skip


def without_size(name: str) -> str:
    """Returns the name of a space before :meth:`SearchSpace.resized`: ``micro`` for ``micro-112px``."""
    return _SIZE.sub("", name)


def load_space(name: str | Path, defaults: Mapping[str, Any] | None = None) -> SearchSpace:
    """Loads a preset by name, also one adapted to another image size (``micro-112px``), or the space of a YAML file or a run.

    Args:
        name: name of a preset, or path of a YAML file, a JSON file or a run's folder.
        defaults: fields that a file may leave out.

    Raises:
        SpaceError: There is no such preset or file (the message names the presets), or the file's content is wrong.
    """
    preset = PRESETS.get(without_size(str(name)))
    if preset is not None:
        size = _SIZE.search(str(name))
        return preset.resized(int(size[1])) if size else preset
    path = Path(name)
    if (path / "run.json").is_file():
        record = read_json(path / "run.json", "run file")
        return SearchSpace.from_dict(record.get("space") if isinstance(record, Mapping) else None, source=str(path))  # type: ignore[arg-type]
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        hint = nearest(name, PRESETS)
        raise SpaceError(
            f"unknown search space {str(name)!r}; {hint}{' ' if hint else ''}legal are {choices(PRESETS)}, or a YAML file, or a run's folder"
        )
    data = read_yaml(path, "search space", SpaceError)
    return SearchSpace.from_dict(
        {"name": path.stem, **(defaults or {}), **data} if isinstance(data, Mapping) else data, source=str(path)
    )
