"""``remote-inference check``: the configuration with every fault at once, and which credentials can be read here."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..clock import Clock, SystemClock
from ..config import Deployment, survey_config
from ..credentials import CredentialError, provider_for
from ..errors import ConfigurationError
from ..providers import provider_named
from .options import Settings, common_options, credential_warnings

__all__ = ["check", "provider_faults"]


@click.command(short_help="Check the configuration, and read the credentials.")
@common_options
def check(settings: Settings) -> int:
    """Check the configuration: every fault is told at once, by the path of its field.

    Then the credentials' sources are read (a command is run), and it says which could be; no value is shown. A source
    that cannot be read here is no fault: other machines may have it.

    The exit status is 1 if there are faults.
    """
    clock = SystemClock()
    with credential_warnings():
        deployments, faults = survey_config(settings.config_path)
    faults += provider_faults(deployments)
    if faults:
        for fault in faults:
            click.echo(fault, err=True)
        one = len(faults) == 1
        raise click.ClickException(f"{settings.config_path}: {'1 fault' if one else f'{len(faults)} faults'}")
    count = len(deployments)
    click.echo(f"{settings.config_path}: {count} deployment{'' if count == 1 else 's'}, no faults")
    for deployment in filter(None, deployments):
        click.echo(f"  {deployment.name}: {deployment.provider}, {deployment.model}, {deployment.endpoint}")
        click.echo(f"    credential: {_credential(deployment, clock)}")
    return 0


def provider_faults(deployments: Sequence[Deployment | None]) -> list[str]:
    """What the providers have against their deployments' options, by path."""
    faults: list[str] = []
    for index, deployment in enumerate(deployments):
        if deployment is None:
            continue
        try:
            provider_named(deployment.provider).check(deployment)
        except ConfigurationError as exc:
            faults += [f"deployment[{index}].{fault}" for fault in exc.faults]
    return faults


def _credential(deployment: Deployment, clock: Clock) -> str:
    if deployment.api_key is None:
        return "none"
    try:
        provider_for(deployment.api_key, clock=clock).fetch()
    except CredentialError as exc:
        return f"cannot be read here: {exc}"
    return f"{deployment.api_key.label}, can be read"
