"""What is certain of an answer, piece by piece as it comes."""

from __future__ import annotations

from collections.abc import Callable

from hilora.base.answers import Reading


class Pieces:
    """Gives out what is new in a text that grows.

    Args:
        put: takes each piece.
    """

    def __init__(self, put: Callable[[str], None]) -> None:
        self.put, self.given = put, ""

    def see(self, reading: Reading) -> None:
        """Give out what is certain by now; to be called once a token."""
        self.give(reading.ready())

    def give(self, text: str) -> None:
        """Give out what is new in a text."""
        if len(text) > len(self.given) and text.startswith(self.given):
            self.put(text[len(self.given) :])
            self.given = text
