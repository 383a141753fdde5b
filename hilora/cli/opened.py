"""What people name, opened: pools, methods, a base model. What is wrong is refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hilora.cli.options import parse_settings, quiet_transformers
from hilora.cli.show import status

if TYPE_CHECKING:
    from hilora.methods.method import Method
    from hilora.pool import Pool


def open_pool(name: str | None) -> Pool:
    """The pool in a folder, an installed one by its name, or the default."""
    from hilora.pool import Pool
    from hilora.pool.source import find_pool

    return Pool.open(find_pool(name))


def choose_method(
    name: str, option: Sequence[str] | None, *, without_base: str = ""
) -> tuple[Method, dict[str, Any]]:
    """A method by its name, and its options as they were given with -o.

    Args:
        name: of the method.
        option: name=value each.
        without_base: the command, if it loads no base model.

    Raises:
        UnknownNameError: there is no such method, or no such option of it.
        InputError: an option has no "=", or makes no sense; or the method routes by a base model, and there is none.
    """
    from hilora.base.passes import needs_base
    from hilora.errors import InputError
    from hilora.methods.lookup import get_method

    settings = parse_settings(option)
    built = get_method(name, **settings)
    if without_base and built.needs_base:
        raise InputError(needs_base(name, without_base))
    return built, settings


def load_base_of(pool: Pool, base: str | None, dtype: str | None) -> tuple[Any, Any]:
    """A pool's base model and tokenizer.

    Args:
        pool: the pool.
        base: to take instead, a name or a path.
        dtype: as people type it.

    Raises:
        MismatchError: the base is another than the pool's.
    """
    from hilora.base.models import load_base
    from hilora.base.prompts import template_id

    quiet_transformers()
    with status(f"Loading {base or pool.base.name}"):
        model, tokenizer = load_base(base or pool.base.name, dtype=dtype)
    pool.base.check_model(model, template_id(tokenizer))
    return model, tokenizer
