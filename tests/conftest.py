"""The real RabbitMQ and Redis of the tests. A missing one skips on a developer's machine and fails in CI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from rabbitmq_admin import RabbitMQAdmin, RabbitMQUnavailable
from redis_database import RedisUnavailable, claimed_database, flush
from services import missing_service

# How fast examples are made says something about a loaded machine, nothing about the code.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


@pytest.fixture(scope="session")
def rabbitmq_admin() -> RabbitMQAdmin:
    """Makes virtual hosts on the RabbitMQ that runs here."""
    try:
        return RabbitMQAdmin()
    except RabbitMQUnavailable as exc:
        missing_service(str(exc))


@pytest.fixture(scope="session")
def broker_url(rabbitmq_admin: RabbitMQAdmin) -> Iterator[str]:
    """A virtual host for this test session alone; its tests tell their queues apart by name."""
    with rabbitmq_admin.temporary_vhost() as vhost:
        yield rabbitmq_admin.url(vhost)


@pytest.fixture
def fresh_broker_url(rabbitmq_admin: RabbitMQAdmin) -> Iterator[str]:
    """A virtual host for one test alone, for tests that look at every queue or leave work behind."""
    with rabbitmq_admin.temporary_vhost() as vhost:
        yield rabbitmq_admin.url(vhost)


@pytest.fixture(scope="session")
def redis_database() -> Iterator[str]:
    """The URL of a Redis database that this test session has claimed."""
    try:
        with claimed_database() as url:
            yield url
    except RedisUnavailable as exc:
        missing_service(str(exc))


@pytest.fixture
def redis_url(redis_database: str) -> Iterator[str]:
    """The session's Redis database, empty before and after the test."""
    flush(redis_database)
    yield redis_database
    flush(redis_database)
