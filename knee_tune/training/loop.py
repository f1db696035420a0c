"""The one training loop. It knows schedules, steps and groups, but no task and no tuner.

Whoever makes the updates drives it: :meth:`TrainingRun.run` with its learner's, a script with its
own.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from knee_tune.config.recipe import BaseRecipe, averaged
from knee_tune.plans.plan import TrainPlan, discard_checkpoints
from knee_tune.plans.step_note import StepNote
from knee_tune.training.checkpoint import (
    ALONE,
    Trunk,
    find_start,
    run_fingerprint,
    save_checkpoint,
)
from knee_tune.training.learner import Learner, columns, means, non_finite
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Done, JobEnd, ReplicaDone, Report

KEPT = 2
"""Checkpoints kept of one run: the newest, and the one before in case the newest is damaged."""

FINITE_CHECK_STEPS = 50
"""Steps between two looks at the loss: a look waits for the GPU."""

CHECKPOINT_SECONDS = 10.0
"""Least time between two checkpoints of a run that goes on: training again for as long costs less
than writing one after every evaluation of a small model."""

CHECKPOINT_SHARE = 0.03
"""Of its time that a run spends on checkpoints, at most: many replicas make them large."""

LOOK_SECONDS = 1.0
"""Between two looks of several ranks whether the driver was interrupted."""


class TrainingRun:
    """One rank's share of one training run, from where it may start to its last step.

    Replicas are named by their place in the plan; a run of a single model is its replica 0.
    ``learner`` makes what is trained, for a group that gives signs of life. ``saves``: whether
    anything is written to disk.
    """

    def __init__(
        self,
        recipe: BaseRecipe,
        plan: TrainPlan,
        group: Group,
        channel: Channel,
        learner: Callable[[Group], Learner],
        *,
        saves: bool = True,
    ) -> None:
        self.plan, self.channel, self.recipe, self._saves = plan, channel, recipe, saves
        self.group = replace(group, alive=lambda: channel.progress(self.step))
        self.learner = learner(self.group)
        self.trunk = Trunk(plan, plan.trunk, channel.line) if plan.trunk else None
        self.step = 0
        self.lost = ""
        self._best: dict[int, float] = {}
        self._ended: dict[int, ReplicaDone] = {}
        self.over: Done | None = None
        """How the run ended, if before its last step; known when :meth:`steps` is exhausted."""
        self.history: list[Report] = []
        """What was measured so far; on rank 0, and what was told before the first step on all."""
        if saves:
            self._load()
        self.first_step = self.step
        self._started = self._saved = time.monotonic()
        self._due_after = CHECKPOINT_SECONDS
        self._last_look, self._next_look, self._looked = self.step, self.step + 1, self._started

    def run(self) -> Done:
        """Train to the last step, or until the driver says stop or the loss is lost."""
        for step in self.steps():
            self.learner.update(step)
        return self.finish()

    def steps(self) -> Iterator[int]:
        """Yield every step for which an update is to be made; asking for the next says it is.

        In between it measures, reports, saves and leaves trunk checkpoints. It ends after the last
        step, or where the driver says stop or the loss is lost; then :meth:`finish` says how.
        """
        if self._tell_history():
            self.over = self._done("stopped")
        elif self.lost:
            self.over = self._done("diverged", reason=self.lost)
        else:
            notes = self.group.leads and self._saves
            note = StepNote(self.plan, first=self.first_step) if notes else None
            try:
                yield from self._steps(note)
            finally:
                if note is not None:
                    note.close()

    def finish(self) -> Done:
        """Return how the run ended; the kept weights of a complete one are measured once more."""
        return self.over or self._finish()

    def _steps(self, note: StepNote | None) -> Iterator[int]:
        evaluations = set(self.plan.evaluation_steps())
        while self.step < self.plan.total_steps and self.over is None:
            self.step += 1
            yield self.step
            if note is not None:
                note.write(self.step)
            self.channel.progress(self.step)
            self.over = self._after_update(evaluate=self.step in evaluations)

    def _after_update(self, *, evaluate: bool) -> Done | None:
        """Measure, report and save what is due after this step; the end of the run if it ends."""
        stop = False
        if evaluate:
            measured = self.learner.measure(self.step)
            lost = {
                r: f"non-finite {names}" for r in measured if (names := non_finite(measured[r]))
            }
            if self._end_diverged(lost):
                return self._diverged(lost)
            # First tell, then save: a run that dies in between tells again what it told, but
            # never leaves anything out.
            stop = self._stop_wanted({r: measured[r] for r in measured if r not in lost})
            self._keep_best(measured)
            self._save(due=stop or self.step == self.plan.total_steps)
        elif self.step % FINITE_CHECK_STEPS == 0:
            lost = dict.fromkeys(self.learner.lost(), "non-finite training loss or gradient")
            if self._end_diverged(lost):
                return self._diverged(lost)
        self._save_trunk()
        if stop:
            return self._done("stopped")
        if self._interrupted():
            self._save(due=True)
            return self._done("stopped")
        return None

    def _interrupted(self) -> bool:
        """Whether the driver was interrupted: the run ends here and goes on from here later.

        Several ranks have to agree, which they do once in a while.
        """
        if self.step < self._next_look:
            return False
        ahead = 1
        if self.group.world_size > 1:
            now = time.monotonic()
            steps, seconds = self.step - self._last_look, now - self._looked
            ahead = min(2 * steps, max(1, int(LOOK_SECONDS * steps / max(seconds, 1e-9))))
            self._last_look, self._looked = self.step, now
        ahead = self.group.agree(0 if self.channel.interrupted else ahead)
        self._next_look = self.step + ahead
        return ahead == 0

    @property
    def _training(self) -> list[int]:
        """The replicas that still train."""
        return [r for r in range(max(1, len(self.plan.replicas))) if r not in self._ended]

    def _stop_wanted(self, measured: Mapping[int, Mapping[str, float]]) -> bool:
        """Report what was measured; whether the driver wants the run to stop, on every rank."""
        stop = False
        if self.group.leads:
            report = Report(
                step=self.step,
                total_steps=self.plan.total_steps,
                metrics=means(measured),
                seconds=time.monotonic() - self._started,
                replicas=columns(measured, len(self.plan.replicas)),
            )
            self.history.append(report)
            stop = self.channel.report(report).stop
        return bool(self.group.agree(stop))

    def _tell_history(self) -> bool:
        """Tell what was measured before the first step; whether the driver said stop there.

        An uninterrupted run would have told it, and stopped there.
        """
        for report in self.history:
            stop = self.group.leads and self.channel.report(report).stop
            if self.group.agree(stop):
                self.step = self.first_step = report.step
                return True
        return False

    def _end_diverged(self, lost: Mapping[int, str]) -> bool:
        """End the replicas that are lost; whether that ends the run.

        One that has a trunk on disk is one trial: it is over when one of its replicas is.
        """
        self._end("diverged", lost)
        return bool(lost) and (self.trunk is not None or not self._training)

    def _end(self, state: JobEnd, replicas: Mapping[int, str]) -> None:
        """End the training of ``replicas``, each with its reason."""
        if not replicas:
            return
        firsts = self.learner.first_steps
        for replica, reason in replicas.items():
            self._ended[replica] = ReplicaDone(
                state=state,
                step=self.step,
                first_step=firsts[replica],
                reason=reason,
            )
        self.learner.leave(replicas)

    def _finish(self) -> Done:
        """Measure the kept weights once more, with the dear metrics."""
        if self.recipe.keep == "last":
            self.learner.keep(self._training)
        finished = self.learner.finish()
        lost = {
            r: f"non-finite {names} of the final evaluation"
            for r, (metrics, _) in finished.items()
            if (names := non_finite(metrics))
        }
        self._end("diverged", lost)
        sound = {r: each for r, each in finished.items() if r not in lost}
        if not sound:
            return self._done("diverged", reason=next(iter(lost.values())))
        firsts = self.learner.first_steps
        for replica, (metrics, weights) in sound.items():
            self._ended[replica] = ReplicaDone(
                state="complete",
                step=self.step,
                first_step=firsts[replica],
                metrics=dict(metrics),
                weights=str(weights),
            )
        return self._done(
            "complete",
            metrics=means({r: each.metrics for r, each in sound.items()}),
            weights=str(next(iter(sound.values())).weights),
        )

    def _keep_best(self, measured: Mapping[int, Mapping[str, float]]) -> None:
        metric = self.recipe.watched_metric
        better = {}
        for replica in self._training:
            watched = measured[replica][metric.name]
            if replica not in self._best or metric.better(watched, self._best[replica]):
                better[replica] = watched
        self._best |= better
        if self.recipe.keep == "best" and better:
            self.learner.keep(better)
        if count := averaged(self.recipe.keep):
            self.learner.keep(self._training, mean_of=count)

    def _save(self, *, due: bool) -> None:
        """Write the checkpoint that a retry starts from, if it is ``due`` or the last one is old.

        The randomness of a step follows from its number, so this is the whole state.
        """
        if not (self._training and self._saves):
            return
        if not self.group.agree(due or time.monotonic() - self._saved >= self._due_after):
            return
        began = time.monotonic()
        state, weights = self._state(), self.learner.kept_weights()
        folder = self.plan.checkpoint_dir
        if self._writes:
            save_checkpoint(
                folder,
                run=run_fingerprint(self.plan),
                step=self.step,
                state=state,
                weights=weights,
                group=self._writers,
            )
        if self.group.leads:
            discard_checkpoints(folder, keep=KEPT)
        self._saved = time.monotonic()
        took = self._saved - began
        self._due_after = (
            max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE) if CHECKPOINT_SECONDS else 0
        )

    def _save_trunk(self) -> None:
        """Save the state for other branches of the trunk, unless it is not finite."""
        trunk = self.trunk
        if trunk is None or not trunk.keeps(self.step) or self._ended:
            return
        if self.group.agree(trunk.wants(self.step)) and not self.learner.lost(thorough=True):
            state, weights = self._state(), self.learner.kept_weights()
            if self._writes:
                trunk.save(self.step, state, weights=weights, group=self._writers)

    @property
    def _writers(self) -> Group:
        """The ranks that write a checkpoint: those of a sharded model have a state each."""
        return self.group if self.learner.mesh else ALONE

    @property
    def _writes(self) -> bool:
        """Whether this rank is one of them."""
        return self.group.leads or bool(self.learner.mesh)

    def _diverged(self, lost: Mapping[int, str]) -> Done:
        """A loss that was lost on the trunk is lost for every later branch: one trains up to it."""
        reason = next(iter(lost.values()))
        if self.group.leads and self.trunk is not None and self.trunk.reaches(self.step):
            verdict = {"lost": reason, "history": self._told(), "ended": self._dumped_ends()}
            self.trunk.save(self.step, verdict, weights=None)
        return self._done("diverged", reason=reason)

    def _state(self) -> dict[str, Any]:
        return {
            "learner": self.learner.state(),
            "best": self._best,
            "ended": self._dumped_ends(),
            "history": self._told(),
        }

    def _told(self) -> str:
        """The history as JSON: one string is saved much faster than hundreds of numbers."""
        told = [report.model_dump(exclude={"type", "total_steps"}) for report in self.history]
        return json.dumps(told)

    def _dumped_ends(self) -> str:
        return json.dumps({r: end.model_dump() for r, end in self._ended.items()})

    def _load(self) -> None:
        """Go to where the run starts, the same on every rank."""
        found = find_start(self.plan, self.trunk, self.group, self.channel.line)
        if found is None:
            if self.plan.trunk_file is not None:
                self.learner.go_on_from(self.plan.trunk_file)
                self.step = self.plan.trunk_file.step
            return
        self.step, state = found.step, found.state
        total = self.plan.total_steps
        told = self.group.gather(state["history"])[0]  # only rank 0 has noted it
        self.history = [Report(total_steps=total, **each) for each in json.loads(told)]
        self._ended = {
            int(replica): ReplicaDone.model_validate(end)
            for replica, end in json.loads(state["ended"]).items()
        }
        self.lost = state.get("lost", "")
        if self.lost:
            return
        self._best = state["best"]
        self.learner.load(state["learner"], found.weights)

    def _done(self, state: JobEnd, *, reason: str = "", **result: Any) -> Done:
        """The run is over; replicas that were still training have stopped."""
        if self.plan.replicas:
            self._end("stopped", dict.fromkeys(self._training, ""))
        return Done(
            state=state,
            step=self.step,
            first_step=self.first_step,
            reason=reason,
            result=result,
            replicas=tuple(self._ended[r] for r in range(len(self.plan.replicas))),
        )
