"""Makes the sections of our docstrings known to griffe, which reads them for the API pages."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Returns|Yields|Raises|Source):)")


class SectionsWithoutBlankLines(griffe.Extension):
    """Puts the blank line before each section that griffe asks for."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
