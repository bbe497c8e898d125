"""A plain list of events.

>>> bandwidth_exceeds = EventSystem()
>>> bandwidth_exceeds.add_event("3.93 MB/s is over the limit of 1.00 MB/s")
>>> bandwidth_exceeds.events
['3.93 MB/s is over the limit of 1.00 MB/s']
>>> bandwidth_exceeds.remove_event("3.93 MB/s is over the limit of 1.00 MB/s")
>>> bandwidth_exceeds.events
[]
"""

from typing import Generic, TypeVar

Event = TypeVar("Event")


class EventSystem(Generic[Event]):
    """The events that are going on, oldest first."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add_event(self, event: Event) -> None:
        """Subscribe an event: it goes to the end of the list. The same event may be in it more than once."""
        self.events.append(event)

    def remove_event(self, event: Event) -> None:
        """Take the first event equal to this one out of the list. ValueError when there is none."""
        self.events.remove(event)
