"""The events that training workers send to the driver, and the relay that hands them to a listener there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from skipreel.jobs.training.loop import Epoch


@dataclass(frozen=True, slots=True)
class Started:
    """The workers have begun to train the network `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The network `name` is trained; `files` are the files of its checkpoint."""

    name: str
    files: dict[str, bytes]


class Listener(Protocol):
    """Follows a training in another thread of the driver. For each network the calls come in this order."""

    def started(self, name: str) -> None:
        """The workers have begun to train a network."""

    def epoch(self, epoch: Epoch) -> None:
        """Rank 0 has finished an epoch."""

    def trained(self, name: str, files: Mapping[str, bytes]) -> None:
        """A network is trained; `files` are those of its checkpoint. An exception makes the network a failed one."""

    def failed(self, name: str, error: Exception) -> None:
        """A network could not be trained, or `trained` raised an exception."""


@dataclass(slots=True)
class Relay:
    """Hands the events of one worker group to a listener.

    Attributes:
        has_begun: called when the workers begin with a network.
        begun: the networks that the workers have begun with.
        current: the network that is being trained.
    """

    listener: Listener
    has_begun: Callable[[], None] = lambda: None
    begun: set[str] = field(default_factory=set)
    current: str | None = None

    def run(self, queue: Any) -> None:
        """Handle the events of a Ray queue until None comes."""
        while (event := queue.get()) is not None:
            self.handle(event)

    def handle(self, event: Started | Epoch | Trained) -> None:
        """Handle one event. An exception of the listener fails that network and does not end the relay."""
        name = event.point if isinstance(event, Epoch) else event.name
        try:
            match event:
                case Started():
                    self.begun.add(name)
                    self.current = name
                    self.has_begun()
                    self.listener.started(name)
                case Epoch():
                    self.listener.epoch(event)
                case Trained():
                    self.current = None
                    self.listener.trained(name, event.files)
        except Exception as error:
            self.listener.failed(name, error)
