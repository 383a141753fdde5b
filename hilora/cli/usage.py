"""What people type that no command can read: refused in one line with the nearest name, as everything else is."""

from __future__ import annotations

from typing import Any, cast

import typer
from typer.core import TyperGroup

from hilora.errors import UnknownNameError

Misread = cast(type[Exception], typer.BadParameter.__mro__[2])
"""All that is raised for what cannot be read: click's class, of which some versions of typer keep their own copy."""
HELP = ("-h", "--help")


class Commands(TyperGroup):
    """A group that refuses an unknown command as any other unknown name is refused."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name; completing a line asks for ones that are not there yet."""
        if not ctx.resilient_parsing and args[0] not in self.commands:
            raise UnknownNameError(f"command of {ctx.command_path}:", args[0], self.commands)
        return super().resolve_command(ctx, args)


def in_one_line(error: Any) -> str:
    """What was wrong with a command line, and where to look; "" where the help has been shown instead."""
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        if error.message:  # typer without rich hands the help on
            print(error.message)
        return ""
    if type(error).__name__ == "NoSuchOption":
        options = (own for own in context.command.params if own.param_type_name == "option")
        known = [name for own in options for name in (*own.opts, *own.secondary_opts)]
        return str(UnknownNameError(f"option of {context.command_path}:", error.option_name, [*known, *HELP]))
    words = " ".join(error.format_message().split())
    return f"{words.rstrip('.')}. See: {context.command_path} --help" if context else words
