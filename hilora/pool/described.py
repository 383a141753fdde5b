"""Adapters that come without samples: known by a description, or by prompts that somebody writes for them.

Both papers need samples of the training data. Five prompts written by hand do nearly as well as five of those; a
description does much worse, since it is worded like no prompt: what each costs is measured in `reproduce/selection`.
"""

from __future__ import annotations

import re

from hilora.errors import InputError

DESCRIPTION = "description"
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def description_texts(description: str) -> list[str]:
    """What stands for samples of an adapter that is only described: the whole, and each sentence.

    Raises:
        InputError: there is nothing to go by.
    """
    whole = " ".join(description.split())
    if not whole:
        raise InputError("The description is empty. Say in a few sentences what the adapter is given and answers.")
    sentences = [sentence for sentence in _SENTENCE.split(whole) if sentence]
    return [whole, *sentences]
