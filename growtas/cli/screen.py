"""What commands print on with rich: a console and a column of progress bars that show text as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType  # noqa: TID251
from rich.progress import Task, TextColumn  # noqa: TID251
from rich.segment import Segment
from rich.text import Text  # noqa: TID251

from growtas.escapes import escape, escape_lines


class Screen(Console):
    """A console for text from files: brackets are not markup, colons are not emoji, and control characters are shown escaped.

    The line breaks of a text are escaped too: what is printed in several lines is printed line by line.

    Args:
        settings: arguments of :class:`rich.console.Console`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Turns text into what is printed; rich calls it for every string and every cell of a table."""
        return super().render_str(escape(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields what is printed; control characters that did not come as a string are escaped here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape_lines(segment.text))


class Words(TextColumn):
    """A column of a progress bar with text, by default the description of the current stage."""

    def __init__(self, text: str = "{task.description}") -> None:
        super().__init__(text, markup=False)

    def render(self, task: Task) -> Text:
        """Formats the text for a task."""
        return Text(escape(self.text_format.format(task=task)))
