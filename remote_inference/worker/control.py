"""Remote-control commands: ``celery control rebuild_session``, and a ``revoke`` that reaches a running stream."""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker.control import Panel, control_command, inspect_command

from ..messaging.names import INFER_TASK

__all__ = ["install_commands"]


def _main(state: Any) -> Any:
    return state.app.tasks[INFER_TASK].inference.worker_main


def install_commands() -> None:
    """Register them with Celery (once a process)."""
    if "rebuild_session" in Panel.data:
        return
    revoke_of_celery = Panel.data["revoke"]

    @control_command(args=[("deployment", str)], signature="<deployment>")
    def rebuild_session(state: Any, deployment: str, **kwargs: Any) -> dict[str, Any]:
        """Swap a deployment's session for one with the credential of now."""
        return dict(_main(state).rebuild(deployment))

    @control_command(args=[("deployment", str), ("seconds", float)], signature="<deployment> <seconds>")
    def force_open(state: Any, deployment: str, seconds: float, **kwargs: Any) -> dict[str, Any]:
        """Open the circuit of a deployment's endpoint: nothing is sent there for so many seconds."""
        return dict(_main(state).force_circuit(deployment, seconds))

    @control_command(args=[("deployment", str)], signature="<deployment>")
    def force_close(state: Any, deployment: str, **kwargs: Any) -> dict[str, Any]:
        """Close the circuit of a deployment's endpoint now."""
        return dict(_main(state).force_circuit(deployment, None))

    @inspect_command()
    def inference_status(state: Any, **kwargs: Any) -> dict[str, Any]:
        """Counts, gates and circuits of the deployments on this worker."""
        return dict(_main(state).status())

    @control_command(name="revoke", variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
    def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any) -> Any:
        """Revoke task by task id (or list of ids); a running inference request is cancelled."""
        ids = [str(one) for one in maybe_list(task_id) or ()]
        if INFER_TASK in state.app.tasks:
            main = _main(state)
            if terminate:  # cancelled by us instead: a pool that terminates would lose the process or refuse
                ours = {one for one in ids if main.holds(one)}
                rest = [one for one in ids if one not in ours]
                reply = (
                    revoke_of_celery(state, rest, terminate=terminate, signal=signal, **kwargs)
                    if rest
                    else None
                )
                if ours:
                    reply = revoke_of_celery(state, sorted(ours), terminate=False, **kwargs)
            else:
                reply = revoke_of_celery(state, ids, terminate=False, signal=signal, **kwargs)
            main.revoked(ids)
            return reply
        return revoke_of_celery(state, task_id, terminate=terminate, signal=signal, **kwargs)
