"""The generated pages, by their file's name in docs/reference/."""

from __future__ import annotations

from collections.abc import Callable

from tests.docs.commands import commands_page
from tests.docs.files import files_page
from tests.docs.python_api import python_page
from tests.docs.recipe import recipe_page

PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands_page,
    "recipe.md": recipe_page,
    "files.md": files_page,
    "python.md": python_page,
}
