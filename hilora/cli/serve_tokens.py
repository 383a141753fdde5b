"""hilora serve token: who may use a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hilora.cli.options import PoolFolder
from hilora.cli.show import console, errors
from hilora.cli.usage import Commands
from hilora.errors import InputError

if TYPE_CHECKING:
    from hilora.serve.state import State

app = typer.Typer(cls=Commands, help="Tokens of a served pool: add, list, revoke.", no_args_is_help=True)


@app.command()
def add(
    *,
    pool: PoolFolder = "./pool",
    tenant: Annotated[str, typer.Option(help="Whose own adapters it sees and uploads; default: nobody's.")] = "",
    scope: Annotated[
        list[str] | None, typer.Option(help="What it is for: use, upload or admin (may be repeated); default: use.")
    ] = None,
    note: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Make a token. It is printed once, alone on standard output; only a hash of it is kept."""
    secret, token = _state(pool).add_token(tenant, scope or ["use"], note)
    errors.print(f"token {token.id}, for {', '.join(sorted(token.scopes))}; it is shown this once:", highlight=False)
    print(secret)


@app.command("list")
def list_tokens(
    pool: PoolFolder = "./pool", as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the tokens by their ids."""
    tokens = _state(pool).tokens()
    if as_json:
        print(json.dumps([vars(token) | {"scopes": sorted(token.scopes)} for token in tokens], indent=1))
        return
    for token in tokens:
        state = f"revoked {token.revoked[:10]}" if token.revoked else f"since {token.created[:10]}"
        told = [token.id, token.tenant or "-", ",".join(sorted(token.scopes)), state, token.note]
        console.print("  ".join(told).rstrip(), markup=False, highlight=False)


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(help="Its id, see: hilora serve token list")], pool: PoolFolder = "./pool"
) -> None:
    """Take a token back; a server that runs refuses it within seconds."""
    _state(pool).revoke(token)
    console.print(f"{token}: revoked", markup=False, highlight=False)


def _state(pool: str) -> State:
    """What a server keeps beside a pool, if there is one."""
    from hilora.pool.store import read_manifest

    read_manifest(Path(pool))
    try:
        from hilora.serve.state import State
    except ModuleNotFoundError as error:
        raise InputError(f"Serving needs {error.name}. Install it: pip install 'hilora[serve]'") from error
    return State(Path(pool))
