"""Who the others are, what all of them say, and what time it is among them. No I/O."""

from __future__ import annotations

from .cluster_time import ClusterTime, Stamp
from .lifecycle import LEASE, Lifecycle, Stage
from .listener import StateListener
from .replica import Replica

__all__ = ["ClusterTime", "LEASE", "Lifecycle", "Replica", "Stage", "Stamp", "StateListener"]
