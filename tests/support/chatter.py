"""A replica that only talks: who speaks to whom over the gossip, told by what each says that it has heard."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable

from kombu.connection import Connection

from remote_inference.messaging import lines, subscriber
from remote_inference.messaging.gossip import Gossip
from remote_inference.messaging.publisher import Publisher

INTERVAL = 0.1  # seconds between two messages
GOOD_BYE = "good-bye"


class Chatterbox:
    """Says every tenth of a second, also where nobody can hear it, whom it has heard how often."""

    send: Callable[[bytes], None] | None = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = 0
        self.ticks = 0
        self.heard: dict[str, int] = {}
        """The number of the last message of each."""
        self.knows_of: dict[str, list[str]] = {}
        """What each has said last that it has heard."""
        self.foreign = 0
        self.changes: list[str] = []
        """In order: online, offline, leave."""
        self.once: Callable[[], object] | None = None
        """Called with the next tick, in the thread of the gossip."""
        self._next = 0.0

    def receive(self, body: bytes | str) -> None:
        try:
            message = json.loads(body)
            self.heard[message["from"]] = message["number"]
            self.knows_of[message["from"]] = message["heard"]
        except (ValueError, TypeError, KeyError, RecursionError):
            self.foreign += 1

    def tick(self) -> float:
        self.ticks += 1
        once, self.once = self.once, None
        if once is not None:
            once()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            self.said += 1
            self.say(self.said)
        return self._next - now

    def say(self, number: int, heard: list[str] | None = None) -> None:
        assert self.send is not None
        known = sorted(self.heard) if heard is None else heard
        self.send(json.dumps({"from": self.name, "number": number, "heard": known}).encode())

    def online(self) -> None:
        self.changes.append("online")

    def offline(self) -> None:
        self.changes.append("offline")

    def leave(self) -> None:
        self.changes.append("leave")
        self.say(self.said + 1, [GOOD_BYE])

    def hears(self, *names: str) -> bool:
        return set(names) <= set(self.heard)

    def is_heard_by(self, *names: str) -> bool:
        """Whether each has said of late that it has heard us."""
        return all(self.name in self.knows_of.get(name, ()) for name in names)


class Member:
    """A chatterbox, its gossip and its publisher: what a process has."""

    def __init__(self, name: str, url: str, publisher_url: str | None = None) -> None:
        self.replica = Chatterbox(name)
        self.publisher = Publisher(lambda: Connection(publisher_url or url, connect_timeout=2))
        self.gossip = Gossip(self.replica, lambda: Connection(url, connect_timeout=2), self.publisher)
        self.gossip.start()

    def close(self) -> None:
        self.gossip.close()
        self.publisher.close()


def main(name: str, url: str, mode: str, heartbeat: str) -> None:
    """A process of its own, which ends when its parent has."""
    subscriber.HEARTBEAT = lines.HEARTBEAT = float(heartbeat)
    subscriber.TICK_LONGEST = float(heartbeat) / 2
    logging.basicConfig(level=logging.INFO)
    parent = os.getppid()
    member = Member(name, url)
    if mode == "fork":  # the child makes its own, and has nothing to do with its parent's
        member.gossip.wait_online(30)
        here = os.getpid()
        if os.fork() == 0:
            parent = here
            member.gossip.close()
            assert "leave" not in member.replica.changes
            member = Member(f"{name}.child", url)
    while os.getppid() == parent:
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
