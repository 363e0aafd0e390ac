"""Tables of commands on terminals of several widths, and where stdout is none."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.cells import cell_len
from rich.text import Text  # noqa: TID251
from typer.testing import CliRunner

from growtas.cli import output
from growtas.cli.app import app
from growtas.cli.output import ProgressBar, new_table, print_facts, print_line, print_table, print_text
from growtas.cli.screen import Screen
from growtas.errors import ConfigError
from growtas.files import MissingEntry

LONG = "a-file-whose-name-is-far-longer-than-a-narrow-terminal-is-wide-and-which-somebody-wants-to-copy.onnx"
ROWS = [
    ("photos [1]/:cat:.png", "1,234.5", "a sentence of many words that may well go on in the next line"),
    (LONG, "0.25", "short"),
    ("", "7", "-"),
]


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of a width; returns a function that gives what was printed."""

    def make(width, terminal=True):
        screen = Screen(file=io.StringIO(), force_terminal=terminal, color_system=None, width=width)
        monkeypatch.setattr("growtas.cli.output.console", lambda **_: screen)
        return screen.file.getvalue

    return make


def sample():
    table = new_table("file", "number", "what it is", right=("number",), fold="what it is")
    for row in ROWS:
        table.add_row(*row)
    return table


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_name_and_no_number_is_cut_on_any_terminal(terminal, width):
    printed = terminal(width)
    print_table(sample())
    words = printed().split()
    for name, number, sentence in ROWS:
        for cell in (*name.split(), number, *sentence.strip("-").split()):
            assert cell in words
    assert "\u2026" not in printed()


def test_a_table_stays_one_where_it_fits(terminal):
    printed = terminal(200)
    print_table(sample())
    assert printed().splitlines()[0].split() == ["file", "number", "what", "it", "is"]
    assert LONG in printed().splitlines()[2]


def test_a_row_that_does_not_fit_has_every_cell_behind_its_heading(terminal):
    printed = terminal(60)
    print_table(sample())
    assert printed().splitlines() == [
        "photos [1]/:cat:.png",
        "  number: 1,234.5",
        "  what it is: a sentence of many words that may well go on",
        "  in the next line",
        LONG,
        "  number: 0.25   what it is: short",
        "  number: 7",
    ]


def test_a_pipe_gets_a_line_a_row(capsys):
    print_table(sample())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line, cells in zip(lines[1:], ROWS, strict=True):
        assert all(cell in line for cell in cells)


def test_facts_and_sentences_break_between_words_only(terminal):
    printed = terminal(40)
    print_facts([("file", f"it is {LONG}, and so on"), ("made", "today")])
    print_text(f"this sentence names {LONG} and goes on")
    assert printed().splitlines() == [
        "file  it is", f"      {LONG},", "      and so on", "made  today", "this sentence names", LONG, "and goes on",
    ]  # fmt: skip


HOSTILE = "[/][red]:cat:\x1b[2J\x07\r\x9b1m\u202e\udcff\n"
SHOWN = r"[/][red]:cat:\x1b[2J\x07\r\x9b1m\u202e\xff\n"


@pytest.mark.parametrize("width", [20, 200])
def test_tables_facts_and_sentences_show_markup_and_control_characters_as_text(terminal, width):
    printed = terminal(width)
    table = new_table("file", HOSTILE)
    table.add_row(HOSTILE, HOSTILE)
    print_table(table)
    print_facts([(HOSTILE, HOSTILE)])
    print_text(HOSTILE)
    print_line(HOSTILE)
    text = printed()
    assert text.count(SHOWN) == 7
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("hidden", [True, False])
def test_a_bar_and_its_notes_show_markup_and_control_characters_as_text(terminal, capsys, hidden):
    printed = terminal(200)
    with ProgressBar(hidden=hidden) as bar:
        bar.stage(HOSTILE, 2)
        bar.bar.refresh()
        bar.note(HOSTILE)
    notes = capsys.readouterr().err
    assert notes == (f"{SHOWN}\n" if hidden else "")
    # The escape sequences are those by which the bar moves the cursor.
    text = re.sub("\x1b\\[[0-9?;]*[a-zA-Z]", "", printed())
    assert (SHOWN in text) is not hidden
    assert text.translate(dict.fromkeys(map(ord, "\r\n"))).isprintable()


def test_what_rich_makes_of_its_own_texts_is_shown_as_text_too(terminal):
    printed = terminal(200)
    output.console().print(Text("a\x1b[2J\x9b\u202eb"))
    assert printed() == "a\\x1b[2J\\x9b\\u202eb\n"


def test_wide_characters_are_counted_as_two_columns(terminal):
    printed = terminal(20)
    print_text("鞋子 衬衫 外套 裤子 连衣裙 凉鞋 短靴 包")
    assert printed().split() == ["鞋子", "衬衫", "外套", "裤子", "连衣裙", "凉鞋", "短靴", "包"]
    assert max(map(cell_len, printed().splitlines())) <= 20


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", ["devices", "recipes"])
def test_lists_are_readable_on_narrow_terminals(terminal, command, width):
    entries = json.loads(CliRunner().invoke(app, [command, "--json"]).stdout)[command]
    printed = terminal(width)
    assert CliRunner().invoke(app, [command], catch_exceptions=False).exit_code == 0
    words = printed().replace(",", " ").split()
    keys = {"devices": ("name", "kind", "precision", "runtime"), "recipes": ("name", "space", "data", "method")}[command]
    for entry in entries:
        assert all(word in words for key in keys for word in str(entry[key]).replace(",", " ").split())
    assert "\u2026" not in printed()
    assert max(map(len, printed().splitlines())) <= width


def test_a_message_that_repeats_a_whole_file_loses_its_middle():
    message = str(ConfigError(f"method is {'x' * 1_000_000}; legal are a and b"))
    assert len(message) < 950
    assert message.startswith("method is xxx")
    assert " ... xxx" in message
    assert message.endswith("xxx; legal are a and b")
    assert str(MissingEntry("y" * 10_000, "name")).endswith("yyy: the entry name is missing")
    assert str(ConfigError("short")) == "short"
