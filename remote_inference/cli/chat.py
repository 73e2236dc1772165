"""``remote-inference chat``: a conversation, its answers streamed as they come."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

import click

from ..client import InferenceHandle
from ..errors import Backpressure, InferenceError
from ..inference import Inference
from ..types import Message, Priority
from .options import Settings, common_options, pick_deployment
from .setup import Backend
from .terminal import clean

__all__ = ["chat"]

CANCEL_PATIENCE = 2.0
"""Seconds in which a cancelled answer has to end."""

QUIT = "/quit"
RESET = "/reset"


@click.command(short_help="Talk to a deployment.")
@click.option("--deployment", metavar="NAME", help="Needed where the configuration has several.")
@click.option("--system", metavar="TEXT", help="A system message, before all others.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="The longest answer.")
@click.option(
    "--temperature", type=click.FloatRange(0.0, 2.0), metavar="T", help="The provider's, if not given."
)
@click.option("--embedded", is_flag=True, help="Run broker and worker in this process: no server is needed.")
@common_options
def chat(
    settings: Settings,
    deployment: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    embedded: bool,
) -> int:
    """Talk to a deployment; each line is a message, and the conversation is sent along with it.

    /reset begins a new conversation, /quit (or Ctrl-D) ends; Ctrl-C cancels the answer that is coming. It works in a
    pipe too: one answer for each line, and nothing else, on standard output.
    """
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    config = settings.config()
    chosen = pick_deployment(config, deployment)
    interactive = sys.stdin.isatty()
    with closing(Backend(settings, config, embedded=embedded, concurrency=1)) as backend:
        backend.start([chosen])
        options = {"max_tokens": max_tokens, "temperature": temperature}
        talk = Conversation(
            backend.inference,
            chosen.name,
            system=system,
            options={name: value for name, value in options.items() if value is not None},
            write=_to_terminal if sys.stdout.isatty() else _to_pipe,
        )
        if interactive:
            click.echo(f"{chosen.name}: {RESET} begins anew, {QUIT} ends, Ctrl-C cancels an answer", err=True)
            backend.without_workers(lambda text: click.echo(text, err=True))
        return _converse(talk, _typed() if interactive else iter(sys.stdin), interactive)


class Conversation:
    """The messages so far, and how the next one is answered.

    Args:
        inference: where requests go.
        deployment: which of them.
        system: the first message.
        options: sampling parameters.
        write: takes text as it comes.
    """

    def __init__(
        self,
        inference: Inference,
        deployment: str,
        *,
        system: str | None,
        options: Mapping[str, Any],
        write: Callable[[str], None],
    ) -> None:
        self._inference = inference
        self._deployment = deployment
        self._start = [Message(role="system", content=system)] if system else []
        self._options = options
        self._write = write
        self.messages: list[Message] = list(self._start)

    def reset(self) -> None:
        """Begin anew."""
        self.messages = list(self._start)

    def say(self, text: str) -> None:
        """Send a message, and write its answer as it comes. Both are kept if the answer is whole.

        Raises:
            InferenceError: what became of it.
            KeyboardInterrupt: it was cancelled by the user; nothing of it is kept.
        """
        asked = [*self.messages, Message(role="user", content=text)]
        handle = self._submit(asked)
        try:
            self._stream(handle)
        except KeyboardInterrupt:
            self._cancel(handle)
            raise
        finally:
            self._write("\n")
        self.messages = [*asked, Message(role="assistant", content=handle.result().text)]

    def _submit(self, asked: list[Message]) -> InferenceHandle:
        return self._inference.submit(
            self._deployment, asked, priority=Priority.HIGH, on_restart="announce", **self._options
        )

    def _stream(self, handle: InferenceHandle) -> None:
        for chunk in handle:
            if chunk.restarted:
                self._write("\n")
                click.echo("(the answer begins anew)", err=True)
            else:
                self._write(chunk.text_delta or chunk.refusal_delta)

    @staticmethod
    def _cancel(handle: InferenceHandle) -> None:
        handle.cancel()
        try:
            handle.result(CANCEL_PATIENCE)
        except (InferenceError, TimeoutError):
            pass


def _converse(talk: Conversation, lines: Iterator[str], interactive: bool) -> int:
    failed = False
    while True:
        try:
            line = next(lines, None)
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.echo(f"\n({QUIT} or Ctrl-D ends)", err=True)
            lines = _typed()  # a generator that has raised is over
            continue
        if line is None or line.strip() == QUIT:
            return int(failed)
        text = line.strip()
        if text == RESET:
            talk.reset()
            if interactive:
                click.echo("(a new conversation)", err=True)
        elif text:
            try:
                talk.say(text)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                click.echo("(cancelled, and not kept)", err=True)
            except InferenceError as exc:
                failed = not interactive
                hint = " (the broker or its queue has no room)" if isinstance(exc, Backpressure) else ""
                click.echo(f"remote-inference: {exc}{hint}", err=True)


def _typed() -> Iterator[str]:
    try:
        import readline  # noqa: F401 - being there, it gives input() its history and its editing
    except ImportError:
        pass
    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo(err=True)
            return


def _to_terminal(text: str) -> None:
    _to_pipe(clean(text))


def _to_pipe(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
