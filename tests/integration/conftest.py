"""Shops over both brokers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from shops import SmallShop

from remote_inference.messaging.embedded import close_broker, register

OpenShop = Callable[..., SmallShop]


@pytest.fixture(params=["embedded", "rabbitmq"])
def either_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A broker of the test's own, in this process and on a server."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("fresh_broker_url")
        return
    register()
    name = f"shop-{uuid4().hex}"
    yield f"embedded://{name}"
    close_broker(name)


@pytest.fixture
def open_shop(either_url: str) -> Iterator[OpenShop]:
    """`open_shop({name: table}, url=, settings=, …)` gives a `SmallShop`, which is closed after the test."""
    yield from _opener(either_url)


@pytest.fixture
def open_rabbit_shop(fresh_broker_url: str) -> Iterator[OpenShop]:
    """As `open_shop`, on RabbitMQ alone."""
    yield from _opener(fresh_broker_url)


def _opener(default: str) -> Iterator[OpenShop]:
    shops: list[SmallShop] = []

    def make(deployments: dict[str, dict[str, object]], url: str = default, **options: object) -> SmallShop:
        shops.append(SmallShop(url, deployments, **options))  # type: ignore[arg-type]
        return shops[-1]

    yield make
    for shop in reversed(shops):
        shop.close()
