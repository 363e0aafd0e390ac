"""A Vision Transformer exported by growtas. Plain PyTorch; growtas is not needed.

    from micro_subnet import load

    model = load()                      # eval mode; the weights are the .safetensors file beside this one
    logits = model(images)              # (batch, in_chans, image_size, image_size) -> (batch, num_classes)

Images are resized, cropped and normalised as ``CONFIG["preprocess"]`` says; ``CONFIG["class_names"]`` names the outputs.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG: dict[str, Any] = {}


class Tables(nn.Module):
    """One vector for each distance between two patches, vertical and horizontal. Entry 0 is for the cls token."""

    def __init__(self, distance: int, head_dim: int) -> None:
        super().__init__()
        self.vertical = nn.Parameter(torch.zeros(2 * distance + 2, head_dim))
        self.horizontal = nn.Parameter(torch.zeros(2 * distance + 2, head_dim))


class Attention(nn.Module):
    """Self-attention. With relative position, a vector for the distance to the query is added to each key and each value."""

    def __init__(self, dim: int, heads: int, config: dict[str, Any]) -> None:
        super().__init__()
        head_dim, distance, grid = config["head_dim"], config["max_relative_position"], config["image_size"] // config["patch_size"]
        self.heads, self.head_dim, self.relative = heads, head_dim, distance is not None
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        if config["qk_norm"]:
            self.q_norm, self.k_norm = (nn.LayerNorm(head_dim, eps=config["norm_eps"]) for _ in range(2))
        if distance is not None:
            self.relative_key = Tables(distance, head_dim)
            self.relative_value = Tables(distance, head_dim)
            place = torch.arange(grid * grid)
            for name, line in (("rows", place // grid), ("columns", place % grid)):
                # Entry of the tables for every query and key, (N, N).
                entry = (line[None, :] - line[:, None]).clamp(-distance, distance) + distance + 1
                self.register_buffer(name, F.pad(entry, (1, 0, 1, 0)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, N, dim)`` -> the same shape."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        logits = q @ k.transpose(-2, -1)
        if self.relative:
            for table, entries in self._pairs(self.relative_key):
                logits = logits + (q @ table.t()).gather(-1, entries.expand_as(logits))
        weights = (logits * self.head_dim**-0.5).softmax(dim=-1)
        out = weights @ v
        if self.relative:
            for table, entries in self._pairs(self.relative_value):
                # Sum of the attention weights for each distance, (batch, heads, N, entries).
                mass = weights.new_zeros(*weights.shape[:-1], len(table)).scatter_add(-1, entries.expand_as(weights), weights)
                out = out + mass @ table
        return self.proj(out.transpose(1, 2).flatten(2))

    def _pairs(self, tables: Any) -> tuple[tuple[Tensor, Tensor], ...]:
        return (tables.vertical, self.get_buffer("rows")), (tables.horizontal, self.get_buffer("columns"))


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and with a residual connection."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=config["norm_eps"])
        self.attn = Attention(dim, heads, config)
        self.norm2 = nn.LayerNorm(dim, eps=config["norm_eps"])
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, N, dim)`` -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """The network. Its head takes the first token or the mean of the patch tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        dim, prefix = config["embed_dim"], config["prefix_tokens"]
        positions = (config["image_size"] // config["patch_size"]) ** 2
        if config["max_relative_position"] is not None:
            positions += prefix
        self.patch_embed = nn.Conv2d(config["in_chans"], dim, config["patch_size"], config["patch_size"])
        self.cls_token = nn.Parameter(torch.zeros(1, prefix, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.blocks = nn.Sequential(
            *(
                Block(dim, heads, hidden_dim, config)
                for heads, hidden_dim in zip(config["num_heads"], config["hidden_dims"], strict=True)
            )
        )
        self.norm = nn.LayerNorm(dim, eps=config["norm_eps"])
        self.head = nn.Linear(dim, config["num_classes"]) if config["num_classes"] else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, in_chans, image_size, image_size)`` -> logits ``(batch, num_classes)``."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        prefix = self.cls_token.expand(len(x), -1, -1)
        if self.pos_embed.shape[1] == x.shape[1]:
            x = torch.cat([prefix, x + self.pos_embed], dim=1)
        else:
            x = torch.cat([prefix, x], dim=1) + self.pos_embed
        x = self.blocks(x)
        if not self.config["fc_norm"]:
            x = self.norm(x)
        x = x[:, 0] if self.config["global_pool"] == "token" else x[:, self.config["prefix_tokens"] :].mean(dim=1)
        return self.head(self.norm(x) if self.config["fc_norm"] else x)


def load(path: str | Path | None = None) -> VisionTransformer:
    """Returns the network with its weights, in eval mode.

    Args:
        path: the weights; by default the file beside this module that was exported with it, even if it was renamed.
    """
    from safetensors.torch import load_file

    model = VisionTransformer(CONFIG)
    model.load_state_dict(load_file(path or find_weights()))
    return model.eval()


def find_weights() -> Path:
    """Finds the weights beside this module, by the recorded file name or else by the recorded SHA-256."""
    folder = Path(__file__).parent
    named = folder / CONFIG["weights"]
    if named.exists():
        return named
    for path in sorted(folder.glob("*.safetensors")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == CONFIG["weights_sha256"]:
            return path
    raise FileNotFoundError(f"{named} does not exist, and no other .safetensors file in that folder holds these weights")


if __name__ == "__main__":
    network = load()
    example = torch.zeros(1, CONFIG["in_chans"], CONFIG["image_size"], CONFIG["image_size"])
    count = sum(parameter.numel() for parameter in network.parameters())
    sys.stdout.write(json.dumps({"params": count, "logits": list(network(example).shape)}) + "\n")
