"""Where pools, adapters and samples come from: folders, installed packages, the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hilora.base.models import first_line
from hilora.base.prompts import check_whole
from hilora.base.records import sample_of
from hilora.errors import AdapterError, InputError
from hilora.jsonl import numbered_lines
from hilora.pool.peft import WEIGHTS, no_weights, only_pickled
from hilora.pool.peft_config import is_mlx

SAMPLES_FILE = "samples.jsonl"


def adapter_folder(source: str) -> Path:
    """A local folder as it is; anything else is fetched from the Hub: configuration and safetensors only.

    Raises:
        AdapterError: neither a folder nor a repository that can be reached, or one without safetensors.
    """
    local = Path(source).expanduser()
    if local.exists():
        return local
    if source.startswith((".", "/", "~")):
        raise AdapterError(f"There is no adapter folder {source!r}. Check the path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["adapter_config.json", "adapter_model*.safetensors*", SAMPLES_FILE]
    try:
        folder = Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"{source!r} is no folder here, and cannot be had from the Hugging Face Hub: {first_line(error)}"
        ) from error
    if not any(folder.glob("adapter_model*.safetensors")) and not is_mlx(folder):
        raise AdapterError(f"The repository {source!r} {_without_safetensors(source)}")
    return folder


def _without_safetensors(source: str) -> str:
    """What is wrong with a repository that has none, by the list of its files; none of them is fetched."""
    from huggingface_hub import errors, list_repo_files

    network = getattr(errors, "HTTPError", OSError)  # of whichever client this version uses
    try:
        names = list_repo_files(source)
    except (network, OSError, ValueError) as error:
        return (
            f"has no {WEIGHTS} in the cache, and its list of files cannot be had ({first_line(error)}). If it has no "
            f"other weights than adapter_model.bin, it {only_pickled('adapter_model.bin')}"
        )
    return no_weights(names)


def read_samples(path: Path) -> list[str]:
    """Sample texts, one of each line: JSON in a shape of `base.records`, a JSON string, or plain text.

    Raises:
        InputError: the file cannot be read, or a line is something else (names the line).
    """
    texts = []
    for number, line in numbered_lines(path, "the samples"):
        where = f"{path}, line {number}"
        text = sample_of(line, where)
        check_whole(text, where)
        texts.append(text)
    return texts


def samples_for(name: str, folder: Path, samples: Path | None) -> list[str]:
    """The samples given, else those that lie in the adapter's folder.

    Raises:
        InputError: there are none, or not where they are said to be.
    """
    path = samples or folder / SAMPLES_FILE
    if samples is None and not path.exists():
        raise InputError(
            f"Adapter {name!r} has no samples: give --samples FILE with about 20 lines of its training data as "
            f'{{"inputs": "..."}}, or put them at {folder / SAMPLES_FILE}. Embeddings and hashed n-grams are kept, '
            f"no texts. Without any: --prompts FILE with prompts that you write, or --describe TEXT."
        )
    return read_samples(path)


def find_pool(pool: str | Path) -> Path:
    """A pool folder, or the folder of an installed pool distribution ("flan-mini")."""
    path = Path(pool)
    if not path.exists() and path.parent == Path():
        spec = importlib.util.find_spec(f"hilora_{path.name.replace('-', '_')}")
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    return path
