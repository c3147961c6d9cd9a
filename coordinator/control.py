"""What a running coordinator does about requests: the journal changes first, then the job in memory follows.

Pausing is an event of the state machine. Everything else changes what the machine was made of, so the job is made anew
from the journal, as after a restart, but with the connection as it is: devices go on with what they do.
"""

from dataclasses import dataclass

from coordinator.gateway import EXIT_DONE, RunningJob
from coordinator.requests import Answer, Inbox, Request, carry_out
from coordinator.results import job_done
from coordinator.store import Store
from edge_runtime.wire.events import Command

# Verbs that leave the job as it is in memory; others wait for what is being folded or judged.
PAUSING = {"pause": True, "resume": False}


@dataclass(frozen=True)
class Attended:
    """What to publish, and whether the job is to be made anew from the journal."""

    commands: tuple[Command, ...] = ()
    renew: bool = False


def attend(job: RunningJob, store: Store, inbox: Inbox, now_s: float) -> Attended:
    """Carry out the requests that wait and can be carried out now, in their order.

    Raises:
        JournalError: The journal cannot be written; what was not answered still waits.
    """
    commands: list[Command] = []
    for request in inbox.waiting():
        if request.verb not in PAUSING and not job.at_rest:
            break  # the next version is a matter of moments, and a later request must not overtake
        answer = carry_out(store, request)
        _tell(job, request, answer)
        if answer.done and request.verb in PAUSING:
            commands += job.pause(now_s, paused=PAUSING[request.verb])
        elif answer.done and request.verb == "stop":
            job.emit(job_done(store))
            job.exit_code = EXIT_DONE
            break
        elif answer.done:
            return Attended(tuple(commands), renew=True)
    return Attended(tuple(commands))


def is_idle(job: RunningJob, store: Store) -> bool:
    """Whether the job is paused and no device has a task of it."""
    if not job.at_rest or job.has_work or not store.paused():
        return False
    return not store.rows("SELECT 1 FROM tasks WHERE state = 'open' LIMIT 1")


def _tell(job: RunningJob, request: Request, answer: Answer) -> None:
    said = {"verb": request.verb, "argument": request.argument, "asked_by": request.asked_by}
    job.emit({"event": "request", **said, "done": answer.done, "message": answer.message})
