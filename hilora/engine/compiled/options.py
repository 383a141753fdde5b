"""What is compiled: the sizes that steps are made for."""

from __future__ import annotations

from dataclasses import dataclass

from hilora.errors import InputError, UnknownNameError

NAMES = ("off", "step")
"""What `compile` may be called; "step" is `Compile()`."""
BACKENDS = ("inductor", "aot_eager", "eager")
"""Of torch.compile; the last two only show that a step can be captured."""


@dataclass(frozen=True)
class Compile:
    """What is compiled: a step for each number of rows with each number of tokens.

    Attributes:
        rows: numbers of rows that step together; fewer are filled up to the next.
        tokens: numbers of tokens that a row may hold, prompt and answer; keys and values of the largest number of
            rows are kept for the largest number of tokens.
        slots: adapters of each shape (ranks and sites) that rows may use at once.
        backend: of torch.compile.

    Raises:
        InputError: a number below 1, or none; another backend.
    """

    rows: tuple[int, ...] = (1, 8, 32)
    tokens: tuple[int, ...] = (256, 1024)
    slots: int = 8
    backend: str = "inductor"

    def __post_init__(self) -> None:
        for name in ("rows", "tokens"):
            given = getattr(self, name)
            numbers = tuple(sorted({given} if isinstance(given, int) else set(given)))
            if not numbers or not all(isinstance(each, int) and each >= 1 for each in numbers):
                raise InputError(f"{name} of what is compiled are numbers of at least 1; got {given!r}.")
            object.__setattr__(self, name, numbers)
        if not isinstance(self.slots, int) or self.slots < 1:
            raise InputError(f"slots are adapters held at once, at least 1; got {self.slots!r}.")
        if self.backend not in BACKENDS:
            raise UnknownNameError("backend", self.backend, BACKENDS)


def options_of(given: str | Compile) -> Compile | None:
    """What is to be compiled: nothing where it is "off".

    Raises:
        UnknownNameError: no such name.
    """
    if isinstance(given, Compile):
        return given
    if given not in NAMES:
        raise UnknownNameError("compile", given, NAMES)
    return Compile() if given == "step" else None
