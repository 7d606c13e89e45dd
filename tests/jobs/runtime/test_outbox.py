"""Messages leave in order, wait for nobody, and none is lost without a word. The service is a stub."""

import threading

import pytest

from skipreel.jobs.runtime.outbox import Outbox


class RefusalError(Exception):
    """Comes again at every try."""


class Service:
    """Fails as often as it is told; hangs until released."""

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.got: list[int] = []
        self.released = threading.Event()
        self.released.set()

    def call(self, number: int) -> None:
        self.released.wait()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody there")
        self.got.append(number)


def outbox() -> Outbox:
    return Outbox(is_permanent=lambda error: isinstance(error, RefusalError), pause_s=0.001)


def fill(box: Outbox, service: Service, count: int) -> None:
    for number in range(count):
        box.put(lambda number=number: service.call(number), {"number": number})  # type: ignore[misc]


@pytest.mark.parametrize("failures", [0, 1, 5])
def test_everything_arrives_once_and_in_order_however_often_the_service_fails(failures):
    box, service = outbox(), Service(failures=failures)
    fill(box, service, 20)
    assert box.close(patience_s=15) == []
    assert service.got == list(range(20))


def test_a_service_that_hangs_holds_nobody_up_and_what_it_did_not_take_is_handed_back():
    box, service = outbox(), Service()
    service.released.clear()
    fill(box, service, 3)
    assert box.close(patience_s=0.01) == [{"number": 0}, {"number": 1}, {"number": 2}]
    service.released.set()


def test_a_service_that_stays_away_is_given_up_after_the_patience():
    box, service = outbox(), Service(failures=10**9)
    fill(box, service, 2)
    assert not box.flush(patience_s=0.01)
    assert box.close(patience_s=0.01) == [{"number": 0}, {"number": 1}]
    assert str(box.last_error) == "nobody there"


def test_a_refused_message_does_not_hold_up_those_after_it():
    box, service = outbox(), Service()

    def refused() -> None:
        raise RefusalError("no such run")

    box.put(refused, {"number": "refused"})
    fill(box, service, 2)
    assert box.close(patience_s=15) == [{"number": "refused"}]
    assert service.got == [0, 1]
