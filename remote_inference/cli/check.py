"""``remote-inference check``: the configuration with every fault at once, and which credentials can be read here."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..clock import Clock, SystemClock
from ..config import Deployment, survey_config
from ..config.provider_table import provider_entry
from ..credentials import CredentialError, provider_for
from ..errors import ConfigurationError
from ..providers import provider_named
from .options import Settings, common_options, credential_warnings

__all__ = ["check", "provider_faults"]


@click.command(short_help="Check the configuration, and read the credentials.")
@common_options
def check(settings: Settings) -> int:
    """Check the configuration: every fault is told at once, by the path of its field.

    It tells what was inferred: provider, endpoint, key and limits. Then the credentials' sources are read (a
    command is run), and it says which could be; no value is shown. A source that cannot be read here is no fault:
    other machines may have it.

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
        for name, by in deployment.inferred.items():
            if name != "api_key":
                click.echo(f"    {name}: {getattr(deployment, name)} (not given; told by {by})")
        click.echo(f"    credential: {_credential(deployment, clock)}")
        click.echo(f"    limits: {_limits(deployment)}")
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
    by = deployment.inferred.get("api_key")
    note = f" (not given: {by})" if by else ""
    if deployment.api_key is None:
        return f"none{note}"
    try:
        provider_for(deployment.api_key, clock=clock).fetch()
    except CredentialError as exc:
        return f"cannot be read here: {exc}{note}"
    return f"{deployment.api_key.label}, can be read{note}"


def _limits(deployment: Deployment) -> str:
    """What is known of the limits before a request was sent, and what more the provider will tell."""
    limits = deployment.rate_limits
    named = [
        f"{name.replace('_', ' ')} {value}"
        for name in (
            "requests_per_minute",
            "tokens_per_minute",
            "input_tokens_per_minute",
            "output_tokens_per_minute",
            "concurrent_requests",
        )
        if (value := getattr(limits, name)) is not None
    ]
    if deployment.max_concurrent is not None:
        named.append(f"max concurrent {deployment.max_concurrent}")
    known = ", ".join(named) or "none are named"
    entry = provider_entry(deployment.provider)
    headers = entry.limit_headers if entry is not None else ""
    told = (
        f"the provider tells its own in {headers}" if headers else "none are known to be told by the provider"
    )
    return f"{known}; {'found out, ' if limits.learn else ''}{told}"
