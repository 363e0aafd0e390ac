from __future__ import annotations

import json
import os
import sys
import unicodedata

import pytest

from growtas.escapes import escape, escape_json, escape_lines
from growtas.files import json_text

EVERY_CHARACTER = [chr(code) for code in range(sys.maxunicode + 1)]
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Classes of characters that change the direction of the text after them, in Unicode's bidirectional algorithm (UAX 9)."""


def obeyed(character):
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in DIRECTIONS


def test_what_a_terminal_obeys_is_escaped_and_letters_stay():
    for character in EVERY_CHARACTER:
        shown = escape(character)
        if obeyed(character):
            assert shown.isascii()
            assert shown.isprintable()
            assert shown.startswith("\\")
        elif character.isprintable():
            assert shown == character


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07\x7f", r"\x1b[31mred\x07\x7f"),
        ("\x9b1m\u202egnp.exe", r"\x9b1m\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("[/] [red] :cat: \U0001f468\u200d\U0001f469 caf\u00e9", "[/] [red] :cat: \U0001f468\u200d\U0001f469 caf\u00e9"),
    ],
)
def test_escapes_are_those_of_python(text, shown):
    assert escape(text) == escape(escape(text)) == shown


def test_several_lines_stay_lines():
    assert escape_lines("a\x1b\n\nb\r\n") == "a\\x1b\n\nb\\r\n"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_has_the_same_data_and_nothing_that_a_terminal_obeys(indent):
    data = {"every character": " ".join(EVERY_CHARACTER), "\x1b\udcff": ["\x9b"]}
    text = json_text(data, indent=indent)
    text.encode()
    assert not {character for character in set(text) - {"\n"} if obeyed(character)}
    assert json.loads(text) == data
    assert escape_json(text) == text
