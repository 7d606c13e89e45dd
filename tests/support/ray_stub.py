"""`RayStub`: Ray without processes. Actors run in the driver's thread, on a clock that only they move.

An actor's method runs when it is called; its answer is ready when the seconds it spent in `RayStub.sleep` have passed.
Calls of one actor run one after another. So slow, hung and dying actors behave the same in every run:

    def next_block(self, jobs):
        stub.sleep(5)          # works for 5 seconds; math.inf: hangs
        raise stub.ProcessDied # the actor is dead from then on

With the fixture `ray_stub` whole commands run on it, with the real decoders and encoders in this process:
``main(["extract", …])``.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from ray import exceptions

from skipreel.features.extraction import actors, progress, ray_executor

# Longer than any test: a wait until then would never end.
END_OF_TIME_S = 1e6


@dataclass(eq=False)
class Ref:
    """An answer: a value or an error, ready at a given time."""

    ready_at: float
    value: Any = None
    error: Exception | None = None


@dataclass(eq=False)
class Actor:
    """A process that runs ``instance``; unknown attributes are its methods, for ``.remote``."""

    stub: "RayStub"
    instance: Any
    options: dict[str, Any]
    free_at: float
    died_at: float = math.inf
    pending: list[Ref] = field(default_factory=list)

    def __getattr__(self, name: str) -> "Method":
        return Method(self, name)


@dataclass(frozen=True)
class Method:
    """A method of an actor."""

    actor: Actor
    name: str
    num_returns: int = 1

    def options(self, *, num_returns: int = 1) -> "Method":
        return Method(self.actor, self.name, num_returns)

    def remote(self, *arguments: Any) -> Any:
        refs = self.actor.stub.call(self, arguments)
        return refs[0] if self.num_returns == 1 else refs


@dataclass(frozen=True)
class Kind:
    """The result of ``ray.remote`` on a class."""

    stub: "RayStub"
    kind: type
    chosen: dict[str, Any] = field(default_factory=dict)

    def options(self, **chosen: Any) -> "Kind":
        return Kind(self.stub, self.kind, chosen)

    def remote(self, *arguments: Any, **named: Any) -> Actor:
        actor = Actor(self.stub, self.kind(*arguments, **named), self.chosen, free_at=self.stub.now)
        self.stub.actors.append(actor)
        return actor


class RayStub:
    """Stands in for the modules ``ray`` and ``time``.

    Attributes:
        now: seconds on the clock.
        actors: all started actors, in order.
        killed: actors that were killed while they were alive.
        calls_to_the_dead: names of methods that were called on dead actors.
        num_waits: how often `wait` was called.
    """

    class ProcessDied(BaseException):
        """Raised by a method of an actor whose process dies there."""

    def __init__(self, *, num_cpus: int = 1) -> None:
        self.now, self.num_waits = 0.0, 0
        self.actors: list[Actor] = []
        self.killed: list[Actor] = []
        self.calls_to_the_dead: list[str] = []
        self.exceptions, self.ObjectRef = exceptions, Ref
        self._resources = {"CPU": float(num_cpus)}
        self._running: Actor | None = None

    # time

    def monotonic(self) -> float:
        """The time for the driver or, inside an actor's method, for the actor."""
        return self._running.free_at if self._running else self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        """Let time pass for the caller, an actor's method or the driver."""
        if self._running:
            self._running.free_at += seconds
        else:
            self.now += seconds
            assert self.now < END_OF_TIME_S, "the driver waits for an answer that will not come"

    # ray

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return dict(self._resources)

    available_resources = cluster_resources

    def remote(self, kind: type) -> Kind:
        return Kind(self, kind)

    def call(self, method: Method, arguments: tuple[Any, ...]) -> list[Ref]:
        """Run a method for its actor; returns its refs, ready when the actor has finished."""
        actor = method.actor
        if actor.died_at <= self.now:
            self.calls_to_the_dead.append(method.name)
        needed = [argument for argument in arguments if isinstance(argument, Ref)]
        actor.free_at = max([actor.free_at, self.now, *(ref.ready_at for ref in needed)])
        values, error = [None] * method.num_returns, next((ref.error for ref in needed if ref.error), None)
        if actor.died_at < math.inf:
            actor.free_at, error = max(self.now, actor.died_at), exceptions.ActorDiedError()
        if error is None:
            try:
                returned = self._run(actor, method.name, [self._value(argument) for argument in arguments])
                values = [returned] if method.num_returns == 1 else list(returned)
            except self.ProcessDied:
                actor.died_at, error = actor.free_at, exceptions.ActorDiedError()
            except Exception as raised:
                error = exceptions.RayTaskError(method.name, str(raised), raised)
        refs = [Ref(actor.free_at, value, error) for value in values]
        actor.pending += refs
        return refs

    def _run(self, actor: Actor, name: str, arguments: list[Any]) -> Any:
        before, self._running = self._running, actor
        try:
            return getattr(actor.instance, name)(*arguments)
        finally:
            self._running = before

    def _value(self, argument: Any) -> Any:
        return argument.value if isinstance(argument, Ref) else argument

    def wait(
        self, refs: list[Ref], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
    ) -> tuple[list[Ref], list[Ref]]:
        del fetch_local
        assert len(set(refs)) == len(refs), "the same ref twice"
        assert 1 <= num_returns <= len(refs), f"{num_returns} of {len(refs)} refs"
        self.num_waits += 1
        wanted = sorted(ref.ready_at for ref in refs)[num_returns - 1]
        until = min(wanted, math.inf if timeout is None else self.now + timeout)
        self.sleep(max(0.0, until - self.now))
        ready = [ref for ref in refs if ref.ready_at <= self.now][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        self.sleep(max(0.0, ref.ready_at - self.now))
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: Actor) -> None:
        if actor.died_at <= self.now:
            return
        self.killed.append(actor)
        actor.died_at = self.now
        for ref in actor.pending:
            if ref.ready_at > self.now:
                ref.ready_at, ref.error = self.now, exceptions.ActorDiedError()


@pytest.fixture
def ray_stub(monkeypatch) -> Iterator[RayStub]:
    """Ray for `ray_executor` and the commands that use it, on a clock that stops while no actor works."""
    stub, threads = RayStub(), torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.setattr(ray_executor, "ray", stub)
    for module in (ray_executor, progress):
        monkeypatch.setattr(module, "time", stub)
    monkeypatch.setattr(actors, "limit_memory", lambda _: None)  # it would bind this process
    yield stub
    torch.set_num_threads(threads)
