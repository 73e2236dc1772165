"""What all commands share: ``--config``, ``--broker``, ``--debug``, and how their errors are told."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import click
from kombu.exceptions import KombuError

from ..config import Deployment, InferenceConfig, load_config
from ..credentials import CredentialWarning
from ..errors import ConfigurationError, InferenceError, InvalidRequest

__all__ = [
    "CONFIG_VARIABLE",
    "Settings",
    "common_options",
    "credential_warnings",
    "pick_deployment",
    "shown_url",
    "warn",
]

CONFIG_VARIABLE = "REMOTE_INFERENCE_CONFIG"
DEFAULT_CONFIG = "inference.toml"
BROKER_VARIABLE = "CELERY_BROKER_URL"
DEFAULT_BROKER = "amqp://guest@localhost//"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that all commands have."""

    config_path: str
    broker: str
    debug: bool = False

    def config(self) -> InferenceConfig:
        """Read the configuration; what it warns of goes to stderr.

        Raises:
            ConfigurationError: with every fault.
        """
        with credential_warnings():
            return load_config(self.config_path)

    def __repr__(self) -> str:
        return f"Settings({self.config_path!r}, {shown_url(self.broker)!r})"


_OPTIONS = (
    click.option(
        "--config",
        "config_path",
        metavar="FILE",
        envvar=CONFIG_VARIABLE,
        default=DEFAULT_CONFIG,
        show_default=True,
        show_envvar=True,
        help="Configuration: the deployments.",
    ),
    click.option(
        "--broker",
        metavar="URL",
        envvar=BROKER_VARIABLE,
        default=DEFAULT_BROKER,
        show_default=True,
        show_envvar=True,
        help="Celery's broker.",
    ),
    click.option("--debug", is_flag=True, help="Log more, and show the trace of an error."),
)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that all have, as `Settings`, and have its errors told in one line."""

    @functools.wraps(command)
    def run(config_path: str, broker: str, debug: bool, **kwargs: Any) -> Any:
        settings = Settings(config_path=config_path, broker=broker, debug=debug)
        if debug:
            logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
            logging.getLogger("remote_inference").setLevel(logging.DEBUG)
        try:
            return command(settings, **kwargs)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as exc:
            if debug:
                raise
            raise click.ClickException(_in_one_line(exc)) from exc

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


@contextmanager
def credential_warnings() -> Iterator[None]:
    """What a configuration warns of, as lines on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CredentialWarning)
        try:
            yield
        finally:
            for warning in caught:
                warn(str(warning.message))


def pick_deployment(config: InferenceConfig, name: str | None) -> Deployment:
    """The deployment of that name, or the only one.

    Raises:
        click.UsageError: there are several, and none was named.
        InvalidRequest: there is none of that name.
    """
    names = ", ".join(config.deployments)
    if name is None:
        if len(config.deployments) > 1:
            raise click.UsageError(
                f"the configuration has several deployments ({names}): give --deployment NAME"
            )
        return next(iter(config.deployments.values()))
    if name not in config.deployments:
        raise InvalidRequest("--deployment", f"no deployment is named {name!r}; there are: {names}")
    return config.deployments[name]


def warn(text: str) -> None:
    """A line on stderr."""
    click.echo(f"warning: {text}", err=True)


def shown_url(url: str) -> str:
    """A broker's URL as it may be shown: without the password."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(a URL that cannot be read)"
    if password is None:
        return url
    return url.replace(f":{password}@", ":**@", 1)


def _in_one_line(exc: Exception) -> str:
    if isinstance(exc, ConfigurationError):
        if len(exc.faults) == 1:
            return exc.faults[0]
        return (
            f"the configuration has {len(exc.faults)} faults ({exc.faults[0]}; …): "
            "remote-inference check shows all of them"
        )
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    text = " ".join(str(exc).split())
    if isinstance(exc, (InferenceError, OSError)):
        return text or type(exc).__name__
    kind = type(exc).__name__
    if isinstance(exc, KombuError):
        return f"broker: {text or kind}"
    return f"unexpected {kind}: {text} (--debug shows the trace)"
