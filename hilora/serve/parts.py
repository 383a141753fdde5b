"""An upload's body -> files under names of our own, with no more than a chunk of it in memory.

A part is known by its field alone; the file name that a client gives is looked at for one thing: to tell whoever
sends a pickle that those are not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hilora.pool.peft import PICKLES, WEIGHTS, only_pickled
from hilora.pool.peft_config import CONFIG, MAX_JSON
from hilora.pool.source import SAMPLES_FILE
from hilora.serve.faults import LateError, ServiceError, TooLargeError
from hilora.serve.limits import Limits

FEATURES_FILE = "features.safetensors"
FILES = {"config": CONFIG, "weights": WEIGHTS, "samples": SAMPLES_FILE, "features": FEATURES_FILE}
"""Field of a form -> the file that it becomes."""
WORDS = {"name": 128, "private": 8, "any_base": 8}
"""Fields that are words -> their most bytes."""
MOST_PARTS = 16
HEADER = 4096
"""Bytes of a part's headers."""
FEATURES = 64 << 20
YES_NO = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass
class Form:
    """What has come of an upload.

    Attributes:
        folder: where its files are.
        words: fields that are no files.
        files: fields that are, with their bytes.
    """

    folder: Path
    words: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def flag(self, name: str, default: bool) -> bool:
        """A word that is yes or no.

        Raises:
            ServiceError: it is something else.
        """
        given = self.words.get(name, "").lower()
        if not given:
            return default
        if given not in YES_NO:
            raise ServiceError(f"{name} is {given!r}; expected true or false.", "invalid_value", name)
        return YES_NO[given]

    def check(self) -> None:
        """Refuse a form that lacks something.

        Raises:
            ServiceError: says what.
        """
        for name in ("config", "weights"):
            if name not in self.files:
                raise ServiceError(
                    f"The form has no field {name!r}, the adapter's {FILES[name]}.",
                    "missing_required_parameter",
                    name,
                )
        if ("samples" in self.files) == ("features" in self.files):
            raise ServiceError(
                "The form needs one of the fields 'samples' (about 20 lines of the training data, JSON Lines) and "
                "'features' (what `hilora pool push --private` makes of them).",
                "missing_required_parameter",
                "samples",
            )


def most_bytes(limits: Limits) -> Mapping[str, int]:
    """The most bytes of each file."""
    samples = min(limits.upload, limits.samples * (4 * limits.sample_length + 64))
    return {
        "config": min(MAX_JSON, limits.upload),
        "weights": limits.upload,
        "samples": samples,
        "features": min(FEATURES, limits.upload),
    }


async def receive(chunks: AsyncIterator[bytes], content_type: str, folder: Path, limits: Limits) -> Form:
    """Write a form's files into a folder that is there.

    Args:
        chunks: the body.
        content_type: of the request.
        folder: empty; what is in it after an error is the caller's to delete.
        limits: bytes and seconds.

    Raises:
        TooLargeError: more bytes than are taken.
        ServiceError: it is no such form.
        LateError: it took too long.
        OSError: the disk does not take it.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise ServiceError("An upload is a form: Content-Type: multipart/form-data; boundary=...", "invalid_value")
    reader = _Reader(Form(folder), most_bytes(limits), limits.upload)
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks)  # type: ignore[arg-type]
        size, end = 0, asyncio.get_running_loop().time() + limits.deadline
        async with asyncio.timeout_at(end) as timeout:
            async for chunk in chunks:
                size += len(chunk)
                timeout.reschedule(end + size / limits.upload_rate)
                await asyncio.to_thread(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise ServiceError(f"The form cannot be read: {error}.", "invalid_value") from error
    except TimeoutError as error:
        raise LateError(
            f"The upload did not arrive within {limits.deadline:g} seconds, and came with less than "
            f"{limits.upload_rate} bytes a second."
        ) from error
    finally:
        reader.close()
    if not reader.ended:
        raise ServiceError("The form ends in the middle. Send it again.", "invalid_value")
    return reader.form


class _Reader:
    """What is called as a form is read; in one thread at a time."""

    def __init__(self, form: Form, most: Mapping[str, int], whole: int) -> None:
        self.form, self.most, self.whole = form, most, whole
        self.ended = False
        self._parts = 0
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._name, self._left = "", 0
        self._file: BinaryIO | None = None
        self._word = bytearray()
        self.callbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._grow(self._header, data[start:end]),
            "on_header_value": lambda data, start, end: self._grow(self._value, data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_end": self._finished,
        }

    def close(self) -> None:
        """Leave no file open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _grow(self, buffer: bytearray, data: bytes) -> None:
        buffer += data
        if len(buffer) > HEADER:
            raise ServiceError(f"A part's header has more than {HEADER} bytes.", "invalid_value")

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ServiceError(f"The form has more than {MOST_PARTS} parts.", "invalid_value")
        self._disposition = b""

    def _header_end(self) -> None:
        if bytes(self._header).strip().lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _open(self) -> None:
        """A part's data come now: into a file, or a word."""
        _, options = parse_options_header(self._disposition)
        self._name = name = options.get(b"name", b"").decode("utf-8", "replace")
        given = PurePosixPath(options.get(b"filename", b"").decode("utf-8", "replace").replace("\0", ""))
        if given.suffix.lower() in PICKLES:
            raise ServiceError(f"The upload {only_pickled(given.name)}.", "adapter_refused", name)
        if name not in FILES and name not in WORDS:
            known = ", ".join([*FILES, *WORDS])
            raise ServiceError(
                f"The form has no field {name!r:.80}; expected {known}.", "unknown_parameter", name[:80]
            )
        if name in self.form.files or name in self.form.words:
            raise ServiceError(f"The form has the field {name!r} twice.", "invalid_value", name)
        if name in FILES:
            self._left = self.most[name]
            self._file = (self.form.folder / FILES[name]).open("xb")
            self.form.files[name] = 0
        else:
            self._left = WORDS[name]
            self._word.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._left -= end - start
        if self._left < 0:
            most = self.most.get(self._name, WORDS.get(self._name))
            raise TooLargeError(f"{self._name} has more than {most} bytes, the most that is taken here.")
        if self._file is None:
            self._word += data[start:end]
            return
        self._file.write(memoryview(data)[start:end])
        self.form.files[self._name] += end - start
        if self.form.size > self.whole:
            raise TooLargeError(f"The upload has more than {self.whole} bytes, the most that is taken here.")

    def _end(self) -> None:
        if self._file is not None:
            self.close()
        else:
            self.form.words[self._name] = bytes(self._word).decode("utf-8", "replace").strip()

    def _finished(self) -> None:
        self.ended = True
