"""`Replica`: one process's copy of the replicated state, who the others are, and what it tells them. No I/O.

Everybody hears everybody over a broadcast that may lose, repeat, delay and reorder. A replica says mostly what it alone
may say (a single writer an entry), so that what was missed is mended by the next full record.

Times in entries are the origin's own monotonic clock; whoever reads them adds the offset that it has measured: the
smallest difference between a message's arrival and its sending, which is the clocks' difference plus the shortest way
(as NTP's, RFC 5905, but one-way: what errs, errs late). So wall clocks may differ; they are compared only to tell.

When a replica may act, and when another one is dead, is `lifecycle`'s and `peers`'.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ...clock import Clock
from ..crdt import CrdtMap, Path
from .cluster_time import ClusterTime
from .congestion import Congestion
from .lifecycle import GUARD, LEASE, Lifecycle, Stage
from .listener import StateListener
from .message import ARCHIVE, BYE, DELTA, FULL, HELLO, VERSION, Foreign, Incompatible, decode, encode
from .peers import MEMORY, Peers, PeerState
from .schedule import PERIOD, URGENT_GAP, Schedule
from .skew import Skew

__all__ = ["Replica"]

logger = logging.getLogger(__name__)

REJOIN_MEMORY = 60.0
REJOIN_LONGEST = 30.0
"""Seconds for which a replica that loses its lease again and again waits at most, at random, before it joins anew."""
LOOK = 0.25
"""Seconds between two looks at who has died."""
UNREACHED = 5.0
"""Seconds after which a replica that cannot reach the broker at all works alone."""
COMPLAIN = 60.0
"""Seconds between two log lines about messages that are not understood."""


class Replica:
    """One member. Thread-safe; every figure of time is seconds, on the clock's `monotonic`.

    Args:
        clock: where time comes from.
        name: for people: the worker and the process.
        weight: how many requests it can run at once: its part where all want more than there is.
        period: between deltas while something changes; longer where there are many members.
        rng: for phases and answers.
        on_skew: told (seconds) when this machine's clock is found wrong, and 0.0 when it is right again.
        process: what shows others on this host whether this process still lives; "" where nothing does.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        name: str = "",
        weight: float = 1.0,
        period: float = PERIOD,
        rng: random.Random | None = None,
        on_skew: Callable[[float], None] | None = None,
        process: str = "",
    ) -> None:
        self._clock = clock
        self.name = name
        self.weight = weight
        self.period = period
        self.process = process
        self._rng = rng or random.Random()
        self.lock = threading.RLock()
        self.state = CrdtMap()
        self.send: Callable[[bytes], None] | None = None
        self.on_process: Callable[[str], object] | None = None
        """Told of each process that becomes known: whoever can see it end says so by `process_ended`."""
        self.id = self._new_id()
        self.rank = 0
        """The order of coming, told by each when it has listened."""
        self.life = Lifecycle()
        self.time = ClusterTime(process.partition(":")[0])
        self.skew = Skew(on_skew)
        self.congestion = Congestion()
        self._peers = Peers()
        self._listeners: list[StateListener] = []
        self._listener_of: dict[str, StateListener] = {}
        self._own: dict[Path, None] = {}
        self._online = False
        self._started_at = math.inf
        self._next = Schedule(period, self._rng, self.congestion)
        self._rejoined = (-math.inf, 0)  # when last, and how often in a row
        self._quiet_until = self._next_look = -math.inf
        self._settled = self._reached = False
        self._told = (1, 0)  # what it said of itself last
        self._acted = False
        self._members: tuple[float, list[str]] = (-math.inf, [])  # as of when
        self._ended_to_tell: dict[str, float] = {}
        self._ended_news: set[str] = set()
        self._refuses_until = -math.inf
        self._older_version = 0
        self._loud_until = -math.inf
        self.counters = {"sent": 0, "received": 0, "malformed": 0, "foreign": 0, "rejoined": 0}

    # -- for those who keep something in the state

    def attach(self, listener: StateListener) -> None:
        """From now on it keeps its kinds."""
        with self.lock:
            self._listeners.append(listener)
            for kind in listener.kinds:
                self._listener_of[kind] = listener

    def own(self, path: Path, cls: type[Any]) -> Any:
        """An entry of our own (the path ends with our id) or a shared one that we change; under the lock."""
        self._own[path] = None
        return self.state.change(path, cls)

    def forget(self, path: Path) -> None:
        """Drop an entry that is of no more use; under the lock."""
        self._own.pop(path, None)
        self.state.forget(path)

    def offset_of(self, replica: str) -> float | None:
        """What to add to that replica's times; None where it is not known."""
        if replica == self.id:
            return 0.0
        peer = self._peers.get(replica)
        offset = math.inf if peer is None else peer.offset
        return None if offset == math.inf else offset

    def weight_of(self, replica: str) -> float:
        """Its weight."""
        peer = self._peers.get(replica)
        return self.weight if peer is None else peer.weight

    def knows(self, replica: str) -> bool:
        """Whether it was heard, and what it said is still of use."""
        return replica in self._peers.states

    def sighted(self, replica: str, process: str, now: float) -> None:
        """A replica that was never heard stands in a ledger: it may live until it was silent for a lease."""
        peer = self._peers.get(replica)
        if peer is None:
            peer = self._peers.add(replica, now)
        if not peer.process:
            peer.process = process
        self._watch(peer)

    def ended(self, replica: str) -> float | None:
        """When a replica has stopped for certain, as its process ended or it said so; None where it only is silent."""
        peer = self._peers.get(replica)
        return peer.ended if peer is not None else None

    def process_of(self, replica: str) -> str:
        """What shows on its host whether it lives."""
        peer = self._peers.get(replica)
        return "" if peer is None else peer.process

    def silent_since(self, replica: str) -> float:
        """When it was heard last."""
        return self._peers.states[replica].heard

    def share_time_with(self, replica: str, now: float) -> None:
        """That replica stands in a ledger, so its word on the cluster's time counts. (Whatever somebody else says must
        not make anything come free.)"""
        peer = self._peers.get(replica)
        if peer is not None and peer.cluster_time > -math.inf and not peer.gone:
            self.time.heard(peer.cluster_time + (now - peer.heard), now)

    def live(self, replica: str, now: float) -> bool:
        """Whether it may still act. Nobody is dead by silence to one who has not heard itself until the lease was over:
        the other may have spoken since."""
        if replica == self.id:
            return True
        peer = self._peers.get(replica)
        if peer is None or peer.gone:
            return False
        life = self.life
        over = max(peer.heard, life.hears_since) + LEASE
        return now < over or life.echo < over - GUARD or not life.connected(now)

    def members(self, now: float) -> list[str]:
        """The ids of those who live, ours included, in order."""
        if self._members[0] != now:
            living = [name for name in self._peers.current if self.live(name, now)]
            self._members = now, sorted([self.id, *living])
        return self._members[1]

    def dead(self, now: float) -> list[str]:
        """The ids of those who are no more, and whose entries are still here."""
        return [name for name in self._peers.states if not self.live(name, now)]

    def outranked_by(self, replica: str) -> bool:
        """Whether that one has been here for longer (of those that came together: has the lower id)."""
        peer = self._peers.get(replica)
        return peer is not None and (peer.rank, replica) < (self.rank, self.id)

    def is_first(self, among: Iterable[str], now: float) -> bool:
        """Whether this replica has been here for longer than those others: it does what one has to do for all."""
        return not any(
            self.outranked_by(name) and not self.joining(name) for name in among if self.live(name, now)
        )

    def may_reclaim(self, now: float) -> bool:
        """Whether its word counts on what a silent replica held: it hears itself, and has listened for long enough."""
        life = self.life
        return life.alone or (self._settled and life.stage(now) is Stage.ACTIVE and life.connected(now))

    def joining(self, replica: str) -> bool:
        """Whether it only listens as yet."""
        peer = self._peers.get(replica)
        return peer is None or peer.joining

    def may_act(self, now: float) -> bool:
        """Whether it may spend what it holds."""
        return now >= self._refuses_until and self.life.may_act(now)

    def acts_at(self, now: float) -> float:
        """When it may act: now, or when that is to be expected."""
        return max(self.life.acts_at(now), self._refuses_until)

    @property
    def refused_version(self) -> int:
        """The format of older processes that were heard lately, beside which this one does nothing; 0: of none."""
        return (self._older_version or VERSION - 1) if self._clock.monotonic() < self._refuses_until else 0

    @property
    def older_format_until(self) -> float:
        """Until then processes of an older format may have spent what no ledger tells of; monotonic."""
        return self._refuses_until

    @property
    def alone(self) -> bool:
        """No broker: whatever there is to share, there is nobody to share it with."""
        return self.life.alone

    def says_all(self, now: float) -> bool:
        """Whether the message that is being made says all that there is to say."""
        return now >= self._next.whole

    def urgent(self) -> None:
        """Something cannot wait for the next delta. From any thread."""
        with self.lock:
            now = self._clock.monotonic()
            if not self._online or not self.life.may_act(now):
                return
            if self._next.too_soon(now):
                self._next.hasten(now)
                return
            message = self._delta(now)
        self._hand_over(message)

    def soon(self) -> None:
        """Something should not wait for the next delta: when the message that is being read is done with."""
        self._next.hasten(self._clock.monotonic())

    def given_up(self) -> None:
        """The others have given this replica up, as a ledger shows: join anew. Under the lock."""
        now = self._clock.monotonic()
        if not self.life.alone:
            self._join(now)

    # -- for the I/O

    def start(self) -> None:
        """There will be a broker: until it is reached nothing is handed out."""
        with self.lock:
            self._started_at = self._clock.monotonic()
            self.life.wait()

    def online(self) -> None:
        """Messages of others arrive from now on."""
        with self.lock:
            now = self._clock.monotonic()
            self._online = self._reached = True
            self.life.hears_since = now
            self._next.begin(now)
            fresh = self.life.waiting and self._started_at < math.inf
            if fresh or self.life.alone or now >= self.life.lease_until:
                self._join(now)
            else:  # only the connection was new: our lease holds, and they may have missed something
                self._next.hello = now
            messages = self._due(now)
        for message in messages:
            self._hand_over(message)

    def offline(self) -> None:
        """The connection is lost."""
        with self.lock:
            self._online = False

    def leave(self) -> bytes | None:
        """Say good-bye: what the message says is final, and its lease is over."""
        with self.lock:
            if not self._online:
                return None
            now = self._clock.monotonic()
            self._before_send(now)
            message = self._telling_of(self._peers.last_words(now), now, BYE, self._full_entries())
            self._online = False
            self.life.end()
        self._hand_over(message)
        return message

    def receive(self, body: bytes | str) -> None:
        """A message came. What is not one of ours is counted, and told once a minute."""
        try:
            head, entries, others = decode(body)
        except Incompatible as exc:
            self._hear_version(exc.version)
            return
        except Foreign as exc:
            self._complain(str(exc))
            return
        with self.lock:
            now = self._clock.monotonic()
            self.counters["received"] += 1
            if head["i"] == self.id:
                self._echoed(head, now)
                return
            self._heard(head, entries, others, now)

    def process_ended(self, process: str) -> None:
        """A process of this host has ended for certain: who was it is no more, and the others are told."""
        with self.lock:
            now = self._clock.monotonic()
            ended = self._peers.of_process(process)
            for name in ended:
                self._ended_to_tell[name] = now + LEASE
                self._ended_news.add(name)
                self._end(name, now)
            if ended:
                logger.info("gossip: the process of %s has ended", ", ".join(sorted(ended)))
                self._members_changed(now)
        if ended:
            self.urgent()

    def tick(self) -> float:
        """Do what is due; returns the seconds until there is more to do."""
        messages: list[bytes] = []
        with self.lock:
            now = self._clock.monotonic()
            life = self.life
            never_reached = life.echo == -math.inf and not self._reached
            if life.waiting and never_reached and now - self._started_at >= UNREACHED and not self._online:
                self._go_alone()
            if self._online:
                if now >= self._next_look or now >= life.listening_until > self._next_look - LOOK:
                    self._next_look = now + LOOK
                    self._look_around(now)
                messages = self._due(now)
            due = self._next.due
            if now < life.listening_until < math.inf:
                due = min(due, life.listening_until)
            # who has something urgent meanwhile relies on us to come again
            if self._next.too_soon(now):
                due = min(due, self._next.last_sent + URGENT_GAP)
        for message in messages:
            self._hand_over(message)
        return max(0.0, min(due - self._clock.monotonic(), self.period))

    # -- what it says; under the lock

    def _due(self, now: float) -> list[bytes]:
        messages = []
        life = self.life
        if now >= life.lease_until:  # given up by the others: begin anew, as somebody else
            self._join(now)
        if now >= self._next.asks:
            if life.may_act(now):
                self._before_send(now)
            self.state.delta()
            messages.append(self._message(HELLO, self._full_entries(), now))
            self._next.asked(now, heard=not life.waiting)
            return messages
        if now >= self._next.full:
            self._before_send(now)
            self.state.delta()
            messages.append(self._message(FULL, self._full_entries(), now))
            self._next.said_all(now, len(self._peers.states))
        elif now >= min(self._next.delta, self._next.soon):
            message = self._delta(now)
            if message is not None:
                messages.append(message)
            self._next.said_changes(now, len(self._peers.states))
        if now >= self._next.archive:
            self._next.archive = math.inf
            names = self._peers.to_tell(now)
            if names:
                messages.append(self._telling_of(names, now, ARCHIVE, []))
        return messages

    def _delta(self, now: float) -> bytes | None:
        self._next.soon = math.inf
        self._before_send(now)
        entries = self.state.delta()
        # That it has listened for long enough is news by itself: who does not hear it takes it for a newcomer.
        news = bool(entries or self._ended_news) or self._standing(now) != self._told
        return self._message(DELTA, entries, now) if news else None

    def _standing(self, now: float) -> tuple[int, int]:
        """Whether it only listens as yet, and its rank."""
        return int(now < self.life.listening_until), self.rank

    def _before_send(self, now: float) -> None:
        for listener in self._listeners:
            listener.before_send(now)

    def _message(self, kind: str, entries: list[Any], now: float, **more: Any) -> bytes:
        self._next.sent(now)
        self.counters["sent"] += 1
        listens, rank = self._told = self._standing(now)
        head = {
            "k": kind,
            "i": self.id,
            "m": math.floor(now * 1e4) / 1e4,  # never later than it was
            "w": round(self._clock.time(), 3),
            "s": listens,
            "t": self.weight,
            "r": rank,
            **more,
        }
        if now < self._refuses_until:
            head["y"] = round(self._refuses_until - now, 2)
        if self.time.known:
            head["c"] = math.floor(self.time.at(now) * 1e4) / 1e4
        if kind in (HELLO, FULL):
            head["n"] = self.name[:200]
            head["d"] = self._peers.ages(now)
            head["p"] = self.process
        if kind == HELLO and self._peers.missing:
            head["q"] = sorted(self._peers.missing)
        if kind in (HELLO, FULL, BYE):  # for those that missed it, or come later
            self._ended_to_tell = {n: until for n, until in self._ended_to_tell.items() if now < until}
            ended = sorted(self._ended_to_tell)
        else:
            ended = sorted(self._ended_news)
        self._ended_news.clear()
        if ended:
            head["x"] = ended
        return encode(head, entries)

    def _hand_over(self, message: bytes | None) -> None:
        send = self.send
        if message is not None and send is not None:
            send(message)

    def _full_entries(self) -> list[Any]:
        own = self._own
        return self.state.full(own.__contains__)

    def _telling_of(self, names: Collection[str], now: float, kind: str, entries: list[Any]) -> bytes:
        """A message that also says what those have said."""
        said = self.state.full(lambda path: path[-1] in names)
        return self._message(kind, entries + said, now, o={n: self._peers.about(n, now) for n in names})

    # -- its own life

    def _join(self, now: float) -> None:
        """Begin (again) as a newcomer who owns nothing."""
        life = self.life
        if life.alone and self._acted:
            self._find_company(now)
            return
        if self._acted:
            self._before_send(now)
            self.state.delta()
        self._acted = False
        mine = [path for path in self._own if path[-1] == self.id]
        if mine:  # what was said under the old id is now the word of one who is no more
            peer = self._peers.add(self.id, now)
            peer.measure(0.0, 0.0)
            self._peers.give_up(self.id, now)  # nobody knows better what it did
            peer.heard = life.echo if life.echo > -math.inf else now - LEASE
            for path in mine:
                del self._own[path]
        wait = 0.0
        if life.echo > -math.inf:
            self.counters["rejoined"] += 1
            wait = self._back_off(now)
            logger.warning(
                "gossip: %s was not heard by the others in time; joins anew in %.1f s",
                self.name or self.id,
                wait,
            )
        before, self.id = self.id, self._new_id()
        self._members = -math.inf, []
        life.wait()
        self.time.forget()
        life.hears_since = self._started_at = now
        self._settled = False
        for listener in self._listeners:
            listener.rejoined(before)
        self._next.greet(now + wait)

    def _find_company(self, now: float) -> None:
        """The broker is there, of which this replica had to do without: what it has spent is still its own."""
        self._acted = self._settled = False
        self.life.wait()
        self.life.hears_since = self._started_at = now
        for listener in self._listeners:
            listener.rejoined(self.id)
        self._next.greet(now)

    def _back_off(self, now: float) -> float:
        """Seconds until it joins anew: longer each time, for where many cannot keep up, their joining is why."""
        last, times = self._rejoined
        times = times + 1 if now - last < REJOIN_MEMORY else 0
        self._rejoined = (now, times)
        return self._rng.random() * min(2.0**times - 1.0, REJOIN_LONGEST)

    def _go_alone(self) -> None:
        logger.warning(
            "gossip: no broker within %.0f s; %s counts its limits alone", UNREACHED, self.name or self.id
        )
        self.life.go_alone()
        self._acted = True
        self._members_changed(self._clock.monotonic())

    def _look_around(self, now: float) -> None:
        """Notice who has died, and drop what is too old to matter."""
        changed = False
        life = self.life
        self.skew.compare(self._peers.skew())
        if self._peers.still_missing(now):
            self._next.ask(now)
        elif not life.waiting:
            self._next.answered()
        for name, peer in list(self._peers.states.items()):
            if not peer.gone and now >= peer.heard + LEASE > self._next.last_sent + GUARD:
                self._next.full = now  # is it gone, or do we not hear? Our own echo will tell
            if not peer.gone and not self.live(name, now):
                self._peers.give_up(name)
                changed = True
                logger.info("gossip: member %s (%s) is no more heard", name, peer.name)
            if peer.gone and now >= peer.heard + MEMORY:
                self._peers.forget(name)
                for listener in self._listeners:
                    listener.forgotten(name)
                for path in [path for path in self.state.entries if path[-1] == name]:
                    self.forget(path)
        if changed or (life.listening_until <= now and not self._settled):
            if not self._settled:  # after all that were here before: they know better what happened
                ranks = [peer.rank for name, peer in self._peers.current.items() if self.live(name, now)]
                self.rank = 1 + max(ranks, default=0)
            self._settled = self._acted = True
            self._members_changed(now)
            self.soon()

    def _members_changed(self, now: float) -> None:
        self._members = -math.inf, []
        for listener in self._listeners:
            listener.members_changed(now)

    # -- what it hears

    def _echoed(self, head: dict[str, Any], now: float) -> None:
        sent = head["m"]
        if self.life.echo < sent <= now:
            self.congestion.echoed(now - sent)
            if self.life.echoed(sent, now):  # we hear ourselves, so we hear the others
                self._next.heard_itself(now, greeting=head["k"] == HELLO)

    def _heard(self, head: dict[str, Any], entries: Any, others: dict[str, Any], now: float) -> None:
        name = head["i"]
        peer = self._peers.get(name)
        new, was_joining = peer is None, True
        if peer is None:
            peer = self._peers.add(name, now)
        elif peer.gone:
            return  # given up: whatever it owned may be somebody else's by now; it will notice itself
        else:
            was_joining = peer.joining
        peer.hear(head, now, self._clock.time())
        self._watch(peer)
        if "y" in head:  # it has heard an older format, of which this replica may know nothing
            self._refuses_until = max(self._refuses_until, now + head["y"])
        said = head["m"] + peer.offset
        self.congestion.heard(now - said)
        told = self._peers.hear_of(others, peer, said, self.id) if others else ()
        if head["k"] == HELLO:
            self._greeted(set(head["q"]), peer.joining, now)
        if self._peers.missing or head["d"] or peer.full == -math.inf:
            self._peers.note_missing(head, told, said, self.id, now)
        for listener, paths in self._merge(name, entries, told).items():
            listener.merged(paths)
        ended = [other for other in head["x"] if other != self.id and self._end(other, now)]
        if head["k"] == FULL and not peer.joining and self._peers.heard_all(head["d"], self.id):
            self.life.answered.set()
        if head["k"] == BYE:  # only now: what it says last belongs to what it leaves
            self._peers.give_up(name, now)
        if new or ended or head["k"] == BYE or was_joining != peer.joining:
            self._members_changed(now)

    def _end(self, name: str, now: float) -> bool:
        """It has stopped for certain; whether that is news."""
        peer = self._peers.get(name) or self._peers.add(name, now)
        if peer.ended is not None:
            return False
        self._peers.give_up(name, now)
        return True

    def _watch(self, peer: PeerState) -> None:
        if peer.process and not peer.watched and self.on_process is not None:
            peer.watched = True
            if peer.process != self.process:
                self.on_process(peer.process)

    def _greeted(self, asked: set[str], joining: bool, now: float) -> None:
        """Somebody asks: for all, as a newcomer, or for what those have said."""
        self._peers.ask(asked, now)
        if self._peers.asked and self._next.archive == math.inf:
            self._next.tell_of_others(now, sum(self.outranked_by(name) for name in self.members(now)))
        if not asked or joining or self.id in asked:
            self._next.answer(now)

    def _merge(self, sender: str, entries: Any, told: Collection[str]) -> dict[StateListener, list[Path]]:
        """Merge what the sender may say: of itself, of the dead it tells of, and what is shared by all."""
        listener_of, peers, mine = self._listener_of, self._peers.states, self.id

        def admit(path: Path) -> bool:
            owner = path[-1]
            if owner != sender and owner not in told and (owner in peers or owner == mine):
                self.counters["foreign"] += 1
                return False
            return path[0] in listener_of  # else a newer version's

        changed: dict[StateListener, list[Path]] = {}
        for path in self.state.merge(entries, admit, sender=sender):
            changed.setdefault(listener_of[path[0]], []).append(path)
        return changed

    def _hear_version(self, version: int) -> None:
        """A process speaks another format.

        Of two formats the older one goes on, as its processes cannot know what the newer ones do; the newer processes
        refuse to send until they have heard none of it for a lease.
        """
        with self.lock:
            now = self._clock.monotonic()
            self.counters["foreign"] += 1
            if version < VERSION:
                self._older_version = version
                self._refuses_until = now + LEASE
            if now < self._loud_until:
                return
            self._loud_until = now + COMPLAIN
        if version < VERSION:
            logger.error(
                "gossip: a process that shares this broker speaks format %d of the shared limits, this one (%s) format "
                "%d. Both together would send twice the limits, so this one sends nothing on limited keys until the "
                "older processes have ended. Stop them, or give this version a virtual host of its own.",
                version,
                self.name or self.id,
                VERSION,
            )
        else:
            logger.warning(
                "gossip: a process that shares this broker speaks format %d of the shared limits, which is newer than "
                "this one's (%d); it waits until the older processes have ended",
                version,
                VERSION,
            )

    def _complain(self, reason: str) -> None:
        now = self._clock.monotonic()
        self.counters["malformed"] += 1
        if now >= self._quiet_until:
            self._quiet_until = now + COMPLAIN
            logger.warning(
                "gossip: a message was ignored: %s (%d so far; told once a minute)",
                reason,
                self.counters["malformed"],
            )

    def _new_id(self) -> str:
        return f"{self._rng.getrandbits(40):010x}"

    def status(self) -> dict[str, Any]:
        """For a status page."""
        with self.lock:
            now = self._clock.monotonic()
            return {
                "id": self.id,
                "stage": self.life.stage(now).value,
                "alone": self.life.alone,
                "connected": self.life.connected(now),
                "members": {
                    name: {
                        "name": peer.name,
                        "heard": round(now - peer.heard, 2),
                        "skew": round(-peer.skew, 3),
                    }
                    for name, peer in self._peers.states.items()
                    if self.live(name, now)
                },
                "skew": round(self.skew.seconds, 3),
                "wrong_clock": self.skew.wrong,
                **({"refuses_beside_format": self.refused_version} if self.refused_version else {}),
                **self.counters,
                "ignored": self.state.ignored,
            }

    def __repr__(self) -> str:
        return f"Replica({self.id}, {len(self._peers.states)} peers known, {self.name!r})"
