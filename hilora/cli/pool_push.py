"""hilora pool push: an adapter is sent to a server, with its samples or with what routing keeps of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hilora.cli.remote import Remote, TokenFile, is_url
from hilora.cli.show import console, status
from hilora.errors import InputError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence


def push(
    url: Annotated[str, typer.Argument(help="The server, as http://127.0.0.1:8000.")],
    folder: Annotated[Path, typer.Argument(help="PEFT folder.")],
    *,
    samples: Annotated[Path | None, typer.Option(help="About 20 lines of its training data (JSON Lines).")] = None,
    name: Annotated[str | None, typer.Option(help="What it is called there; default: the folder's name.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Texts stay here: embeddings and hashed counts are made and sent.")
    ] = False,
    embedder: Annotated[
        str | None, typer.Option(help="With --private: where the server's embedder lies here.")
    ] = None,
    no_terms: Annotated[bool, typer.Option("--no-terms", help="With --private: no hashed n-grams.")] = False,
    tenant_only: Annotated[
        bool | None,
        typer.Option("--tenant-only/--everybody", help="Who may use it; default: the tenant, if the token has one."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an adapter of that name.")] = False,
    any_base: Annotated[bool, typer.Option("--any-base", help="Its config may name another base.")] = False,
    wait: Annotated[float, typer.Option(min=0, max=600, help="Seconds to wait until it is checked.")] = 600,
    token_file: TokenFile = None,
) -> None:
    """Send an adapter to a server, which checks it and then routes to it."""
    from hilora.pool.manifest import check_name
    from hilora.pool.peft_config import CONFIG, read_config
    from hilora.pool.source import samples_for

    if not is_url(url):
        raise InputError(f"{url!r} is no server's address: expected http://... For a folder: hilora pool add")
    if not private and (embedder or no_terms):
        raise InputError("--embedder and --no-terms say how --private looks at the samples; give --private, too.")
    name = name or folder.resolve().name
    check_name(name)
    read_config(folder)
    texts = samples_for(name, folder, samples)
    files: dict[str, bytes | Path] = {"config": folder / CONFIG, "weights": _weights(folder)}
    remote = Remote(url, token_file)
    with status(f"Asking {url}"):
        about = remote.page(limit=1)
    if private:
        with status("Looking at the samples"):
            files["features"] = _features(name, texts, about.get("embedder"), embedder, terms=not no_terms)
    else:
        files["samples"] = "".join(json.dumps({"inputs": text}) + "\n" for text in texts).encode()
    words = {"name": name} | ({"any_base": "true"} if any_base else {})
    if tenant_only is not None:
        words["private"] = "true" if tenant_only else "false"
    with status(f"Sending {name}"):
        found = remote.send(words, files, replace=replace, wait=wait)
    whose = "the tenant's own" if found.get("private") else "everybody's"
    told = f"{name}: {found.get('state')}, {whose}"
    told += f", {str(found['hash'])[:12]}" if found.get("hash") else f". See: hilora pool show {name} --pool {url}"
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def _weights(folder: Path) -> Path:
    """The one file of weights."""
    from hilora.pool.peft import INDEX, WEIGHTS, no_weights

    if (found := folder / WEIGHTS).is_file():
        return found
    if (folder / INDEX).is_file():
        raise InputError(f"{folder} has its weights in several files; a server takes one, {WEIGHTS}. Save it as one.")
    raise InputError(f"{folder} {no_weights([path.name for path in folder.iterdir()])}.")


def _features(name: str, texts: Sequence[str], about: Any, embedder: str | None, *, terms: bool) -> bytes:
    """What routing keeps of the samples, as a server takes it."""
    from hilora.base.embed import Embedder, describe_embedder
    from hilora.cli.options import quiet_transformers
    from hilora.pool.looked import look_at
    from hilora.pool.private import write_features

    if not isinstance(about, dict) or not {"name", "instruction", "fingerprint", "dim"} <= about.keys():
        raise InputError(
            "This server does not say which embedder it has. Send the samples instead, without --private."
        )
    quiet_transformers()
    found = Embedder(embedder or str(about["name"]), instruction=str(about["instruction"]))
    info = describe_embedder(found)
    if (info.fingerprint, info.dim) != (about["fingerprint"], about["dim"]):
        raise MismatchError(
            f"The server's embedder is {about['name']!r} (fingerprint {about['fingerprint']}); {found.name!r} "
            f"here is another ({info.fingerprint}). Name the right one by --embedder."
        )
    features = look_at(name, texts, found, info, terms=terms)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "features.safetensors"
        write_features(path, features, info)
        return path.read_bytes()
