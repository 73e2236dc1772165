"""`main`: the group of commands, each loaded when it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, cast

import click

__all__ = ["COMMANDS", "cli", "main"]

PROGRAM = "remote-inference"

COMMANDS = {
    "batch": "remote_inference.cli.batch:batch",
    "chat": "remote_inference.cli.chat:chat",
    "check": "remote_inference.cli.check:check",
    "rebuild-session": "remote_inference.cli.operate:rebuild_session",
    "status": "remote_inference.cli.operate:status",
    "worker": "remote_inference.cli.worker:worker",
}
"""``module:command`` by name: a worker need not load what draws progress bars."""


class Commands(click.Group):
    """A group whose commands are loaded by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        path = COMMANDS.get(cmd_name)
        if path is None:
            return None
        module, _, attribute = path.partition(":")
        return cast(click.Command, getattr(import_module(module), attribute))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{PROGRAM} {version('remote-inference')}")
        ctx.exit()


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def cli() -> None:
    """Run language model requests through Celery queues: in batches, in a chat, as a worker."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: in place of the process's.

    Returns:
        The exit status: 0 when all went well, 1 when something did not, 2 when the command was called wrongly,
        130 after Ctrl-C.
    """
    try:
        status: Any = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx is not None else PROGRAM
        _complain(f"{exc.format_message()} ({where} --help tells more)")
        return exc.exit_code
    except click.ClickException as exc:
        _complain(exc.format_message())
        return exc.exit_code
    except click.Abort:
        _complain("interrupted")
        return 130
    except BrokenPipeError:  # the reader of a pipe has had enough; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


def _complain(text: str) -> None:
    click.echo(f"{PROGRAM}: {text}", err=True)
