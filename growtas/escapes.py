"""Makes characters visible that a terminal would obey instead of showing, such as those in the names of strangers' files."""

from __future__ import annotations

import re

# C0 and C1 control characters, line separators, marks that change the direction of text, and surrogates: bytes that are not UTF-8.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def escape(text: str) -> str:
    r"""Returns text in one line with nothing in it that a terminal obeys: ``\n``, ``\x1b``, ``\u202e``, ``\xff`` for the byte."""
    return _OBEYED.sub(_escaped, text)


def escape_lines(text: str) -> str:
    """Returns text as :func:`escape` does, but keeps its line breaks."""
    return "\n".join(map(escape, text.split("\n")))


def escape_json(text: str) -> str:
    """Returns a JSON text with the same data, and nothing in it that a terminal obeys, apart from its own line breaks."""
    return _OBEYED.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text)


def _escaped(match: re.Match[str]) -> str:
    character, code = match[0], ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # the byte that Python keeps as this surrogate
        code -= 0xDC00
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
