"""The end of a trial, told to everybody but Optuna."""

from knee_tune.tuning.dashboard import write_trial_note
from knee_tune.tuning.events import Ending, RunEvents
from knee_tune.tuning.listeners import Watcher
from knee_tune.tuning.trial import TrialRun


def record_end(run: TrialRun, ending: Ending, *, events: RunEvents, watcher: Watcher) -> None:
    """Record how a trial ended everywhere but in its state, which Optuna is told next."""
    run.note_steps(pruned=ending.end == "pruned")
    if ending.reason:
        run.note(reason=ending.reason)
    run.note_link(events.link)
    write_trial_note(run, ending)
    events.finished(ending, **run.counts)
    watcher.trial_finished(
        run.number,
        ending.end,
        value=ending.metrics.get(run.metric),
        reason=ending.reason,
    )
