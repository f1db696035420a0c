"""A recorder that remembers what it was told, for tests of whoever records."""

from typing import TypeVar

from knee_tune.records.events import Event, RunLink

E = TypeVar("E")


class Recording:
    """Takes every event, and pretends that every run is known at once."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        """Remember."""
        self.events.append(event)

    def run_of(self, key: str | None) -> RunLink | None:
        """A run whose id is the key's."""
        return RunLink(run_id=f"run-of-{key}", url=f"http://127.0.0.1:5000/#/{key}")

    def of_kind(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]
