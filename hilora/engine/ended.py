"""transformers is told which rows have ended by the objects that read the answers: row by row, at every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from hilora.base.answers import Answer, Ends, Reading
from hilora.base.prompts import as_texts
from hilora.engine.sampling import how_many

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RowEnds(StoppingCriteria):
    """Says which rows have ended. What a row says depends on its tokens alone, so rows may move, multiply and leave.

    Args:
        ends: what ends them.
        start: where the answers begin, in tokens; all rows begin at one place.
        others: criteria of the caller's, which end rows, too.
        in_place: no beams: a row is always the same one.
    """

    eos_token_id = None  # that there is one makes transformers put pads behind the end

    def __init__(self, ends: Ends, start: int, others: Sequence[Any] = (), in_place: bool = True) -> None:
        self.ends, self.start = ends, start
        self.others = list(others)
        self.see: Callable[[Reading], None] | None = None  # is shown the first row
        self.wanted: Callable[[], bool] | None = None  # whether anybody still waits
        self._read: dict[tuple[int, ...], Reading] = {}
        self.in_place = in_place
        self._cut_off: set[tuple[int, tuple[int, ...]]] = set()  # rows that others have ended, with their places

    @property
    def criteria(self) -> list[StoppingCriteria]:
        """Itself; nothing where end tokens are all that ends rows, which transformers sees for itself."""
        return [self] if self._reads or self.wanted else []

    @property
    def _reads(self) -> bool:
        return bool(self.ends.stops or self.others or self.see)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """(row,) whether each has ended."""
        is_over = self.wanted is not None and not self.wanted()
        if is_over or not self._reads:
            return torch.full((len(input_ids),), is_over, device=input_ids.device)
        rows = [tuple(row) for row in input_ids[:, self.start :].tolist()]
        self._read = {row: self._longer(row) for row in rows}
        done = torch.tensor([self._read[row].ended for row in rows], device=input_ids.device)
        for other in self.others:
            found = torch.as_tensor(other(input_ids, scores, **kwargs), device=input_ids.device).expand(len(rows))
            places = (found & ~done).nonzero().flatten().tolist()
            self._cut_off |= {(self._place(place), rows[place]) for place in places}
            done = done | found
        if self.see:
            self.see(self._read[rows[0]])
        return done

    def answer(self, new: Sequence[int], place: int) -> Answer:
        """What a row with these new tokens says; behind its end they do not count."""
        return self._of(new, place).answer()

    def _place(self, place: int) -> int:
        return place if self.in_place else 0

    def _of(self, new: Sequence[int], place: int = 0) -> Reading:
        row = tuple(token for token in new if token >= 0)  # beams without an end token are filled up with -1
        own = [each for where, each in self._cut_off if where == self._place(place)]
        lengths = [len(each) for each in own if each == row[: len(each)]]
        if lengths:
            reading = self.ends.read(row[: min(lengths)])
            reading.end()
            return reading
        return self._read[row] if row in self._read else self.ends.read(row)

    def _longer(self, row: tuple[int, ...]) -> Reading:
        """A row read, from where it was a token ago."""
        before = self._read.get(row[:-1])
        if before is None:
            return self.ends.read(row)
        reading = before.fork()
        reading.feed(row[-1])
        return reading


def row_ends(
    model: Any, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], options: dict[str, Any], start: int
) -> RowEnds:
    """What ends the rows of a call: by its options, else by the model's generation config.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        stops: texts that end an answer.
        options: for transformers; what we decide ourselves is taken out.
        start: where the answers begin.
    """
    defaults = model.generation_config
    tokens = options.get("eos_token_id", defaults.eos_token_id)
    listed = [] if tokens is None else [tokens] if isinstance(tokens, int) else [int(token) for token in tokens]
    own = as_texts(getattr(defaults, "stop_strings", None))
    if own:
        options["stop_strings"] = None  # transformers would look for them itself
    others = options.pop("stopping_criteria", None) or ()
    in_place = how_many("num_beams", options, defaults) == 1
    return RowEnds(Ends(tokenizer, listed, [*stops, *own]), start, others, in_place)
