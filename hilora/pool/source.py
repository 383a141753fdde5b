"""Where pools, adapters and samples come from: folders, installed packages, the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from hilora.base.models import first_line
from hilora.base.prompts import check_whole
from hilora.base.records import sample_of
from hilora.errors import AdapterError, InputError, PoolError
from hilora.jsonl import numbered_lines
from hilora.pool.peft import WEIGHTS, no_weights, only_pickled
from hilora.pool.peft_config import is_mlx
from hilora.pool.store import MANIFEST

SAMPLES_FILE = "samples.jsonl"
OWN_POOL = "./pool"
SHIPPED_POOL = "flan-mini"


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


def find_pool(pool: str | Path | None = None) -> Path:
    """The folder of a pool: the one named, else ./pool if that is one, else flan-mini.

    A name that is no folder here is that of an installed pool (a wheel `hilora-NAME`), or, in a clone of hilora, of a
    folder in pools/.

    Raises:
        PoolError: none is named, or flan-mini is, and there is none.
    """
    if pool is None and (Path(OWN_POOL) / MANIFEST).exists():
        return Path(OWN_POOL)
    path = Path(SHIPPED_POOL if pool is None else pool)
    if path.parent != Path() or (path.exists() and pool is not None):
        return path
    found = _pool_called(path.name)
    if found is None and path.name == SHIPPED_POOL:
        raise PoolError(
            f"There is {f'no {OWN_POOL}, and ' if pool is None else ''}no {SHIPPED_POOL}: its wheel, "
            f"hilora-{SHIPPED_POOL}, is not installed, and there is no folder pools/{SHIPPED_POOL}, as in a clone of "
            f"hilora (there: pip install ./pools/{SHIPPED_POOL}). Or make a pool of your adapters: "
            f"hilora pool add NAME FOLDER --samples FILE --pool {OWN_POOL}"
        )
    return found or path


def _pool_called(name: str) -> Path | None:
    """An installed pool, or one of a clone in the working folder."""
    module = f"hilora_{name.replace('-', '_')}"
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    cloned = Path("pools") / name
    return cloned if (cloned / MANIFEST).exists() else None
