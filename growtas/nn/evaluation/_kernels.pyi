def attend(
    qkv: int,
    query_bias: int,
    key_tables: int,
    value_tables: int,
    lines_of_keys: int,
    lines_of_values: int,
    out: int,
    images: int,
    tokens: int,
    heads: int,
    head_dim: int,
    lines: int,
    images_at_once: int,
    /,
) -> None: ...
def bias_gelu(x: int, bias: int, rows: int, columns: int, /) -> None: ...
def layer_norm(x: int, out: int, weight: int, bias: int, rows: int, columns: int, eps: float, /) -> None: ...
def instructions(name: str = ..., /) -> str: ...
