from __future__ import annotations

import pytest

from growtas.docstrings import Entry, descriptions, entries, markdown, section, summary


def described(first, second):
    """Does two things.

    Both are done at once,
    and ``twice``.

    Args:
        first, second: what they are,
            and why: because.
        third (text or null): With a type.

    Returns:
        A pair; see :func:`growtas.somewhere.pair`.

    Raises:
        ValueError: always.
    """


def test_a_docstring_is_taken_apart():
    assert summary(described) == "Does two things.\n\nBoth are done at once,\nand `twice`."
    assert entries(described, "Args") == [
        Entry(("first", "second"), "", "what they are, and why: because."),
        Entry(("third",), "text or null", "With a type."),
    ]
    assert section(described, "Returns") == "A pair; see `growtas.somewhere.pair`."
    assert descriptions(described, "Raises") == {"ValueError": "always."}


def test_what_is_not_there_is_empty():
    assert entries(described, "Attributes") == []
    assert section(described, "Fields") == ""
    assert summary(type("Silent", (), {})) == ""


def test_a_text_describes_a_file():
    text = """``a.json``: a file.

    Fields:
        list[].inner (number): In seconds,
            or not.
        1/model.onnx (artifact): A file.
    """
    assert [entry.names for entry in entries(text, "Fields")] == [("list[].inner",), ("1/model.onnx",)]
    assert entries(text, "Fields")[0].text == "In seconds, or not."


def test_a_line_that_is_no_entry_is_refused():
    with pytest.raises(ValueError, match="these words"):
        entries("A.\n\nFields:\n    these words\n", "Fields")


def test_roles_become_code():
    assert markdown("as :class:`~growtas.space.SearchSpace` and ``x``") == "as `growtas.space.SearchSpace` and `x`"
