"""One answer that is being made: what was asked, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Picks(Protocol):
    """How the tokens of an answer are chosen (`pick.Pick`)."""

    def is_plain(self, count: int) -> bool:
        """Whether the token after `count` new ones is the likeliest, whatever came before."""
        ...

    def barred(self, count: int) -> Sequence[int]:
        """Tokens that may not come after `count` new ones, where the likeliest of the others does; else none."""
        ...

    def __call__(self, request: Request, logits: Tensor) -> int:
        """The next token, from logits (vocabulary,)."""
        ...


@runtime_checkable
class Serve(Protocol):
    """What makes a model serve requests."""

    def __call__(self, requests: Sequence[Request]) -> AbstractContextManager[object]:
        """The model serving these, row by row in that order, while it is open."""
        ...

    def begin(self, request: Request) -> None:
        """A request takes steps from now on."""
        ...

    def end(self, request: Request) -> None:
        """It takes no more."""
        ...

    def close(self) -> None:
        """The model by itself again."""
        ...

    @property
    def fixed(self) -> Any:
        """What takes these requests' steps once their prompts are read (`compiled.bank`); None: the loop does."""
        ...


@dataclass(eq=False)
class Request:
    """One answer. Its state is its lengths: prompt tokens read, new tokens made.

    Its first new token comes from the last prompt token, each other one from the one before: once the prompt is read,
    `read + len(new) - 1` tokens have their keys and values.
    """

    ids: Sequence[int]  # of the prompt
    most: int  # new tokens
    says: Any  # what they say, fed token by token, and whether that is the end (`base.answers.Reading`)
    pick: Picks  # how a token is chosen
    serve: Serve  # makes the model serve it; those that share it may share steps
    plan: Any = None  # which adapters serve it, for `serve`; None for the base model
    on_token: Callable[[Request], None] | None = None  # called in the engine's thread; streams have it
    on_end: Callable[[Any], None] = lambda request: None  # the same, once, when the step is over
    read: int = 0
    new: list[int] = field(default_factory=list)
    cancelled: bool = False
    taken: bool = False  # the engine has it
    begun: bool = False
    ended: bool = False
    error: BaseException | None = None

    @property
    def held(self) -> int:
        """Tokens that have keys and values."""
        return self.read + max(0, len(self.new) - 1)

    def read_on(self, count: int) -> None:
        """So many more tokens of the prompt have been read."""
        self.read += count
        assert 0 <= self.read <= len(self.ids)
        assert not self.new, "a prompt is read before its answer begins"

    def take(self, token: int) -> None:
        """The next token."""
        assert not self.ended
        assert self.read == len(self.ids)
        assert len(self.new) < self.most
        self.new.append(token)
        self.says.feed(token)
        if self.on_token:
            self.on_token(self)
        if self.says.ended or len(self.new) == self.most:
            self.end()

    def begin(self) -> None:
        """It takes steps from now on."""
        assert not self.begun, "a request begins once"
        self.begun = True
        self.serve.begin(self)

    def end(self, error: BaseException | None = None) -> None:
        """It ends here; once."""
        assert not self.ended, "a request ends once"
        self.ended, self.error = True, error
        if self.begun:
            self.serve.end(self)
