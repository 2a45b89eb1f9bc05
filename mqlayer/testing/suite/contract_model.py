"""Random use against a model that fits into a dictionary: C39."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from mqlayer.api import Delivery
from mqlayer.driver import Support
from mqlayer.errors import MQError
from mqlayer.policy import Retry
from mqlayer.testing.stage import Stage
from mqlayer.testing.suite.criterion import Outcome, criterion
from mqlayer.testing.suite.deliveries import PATIENCE

__all__ = ["random_use_is_what_the_model_says"]

NOTHING = 0.02  #: seconds in which nothing has to come where the model is empty
STEPS_SHOWN = 12
NEEDED = ("send", "receive", "ack", "nack", "restart")
ROUNDS_MAX = 5  #: few short examples need not use every verb
VERBS = (
    *("send", "send_many", "submit"),
    *("receive", "receive", "receive", "ack", "ack", "nack", "reject", "extend"),
    *("purge", "close", "restart"),
)


@criterion("C39", limit=300)
def random_use_is_what_the_model_says(stage: Stage) -> Outcome:
    """Sends, receives, settlements, purges, closings in any order: what comes is what a dictionary says may come."""
    slow = stage.has_server
    examples = stage.size(quick=6 if slow else 20, full=50)
    steps = stage.size(quick=25, full=40, soak=100)
    done: Counter[str] = Counter()
    failures: list[Exception] = []

    class Machine(_Machine):
        def __init__(self) -> None:
            super().__init__(stage, done, failures)

    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    for again in range(ROUNDS_MAX):
        try:
            run_state_machine_as_test(seeded(stage.seed + again)(Machine), settings=chosen)
        except Exception:
            if failures:  # a broker need not fail again in the same place, of which Hypothesis would make its own error
                raise failures[0] from None
            raise
        if all(done[verb] for verb in NEEDED):
            break
    stage.floor("examples", done["example"], examples)
    for verb in NEEDED:
        stage.floor(verb, done[verb], 1)
    return Outcome(counts={"checked": sum(done.values()) - done["example"]}, evidence={"steps": dict(done)})


@dataclass(slots=True)
class _Known:
    """What the model knows of one message.

    Attributes:
        failures: Its nacks.
        returns: How often it may have gone back without a failure, which may count as a delivery or not: its consumer
            closed; or, where giving back is not the broker's own, nobody asked any more while it was on its way.
    """

    number: int
    failures: int = 0
    returns: int = 0


class _Machine(RuleBasedStateMachine):
    """One queue, one consumer at a time.

    Attributes:
        ready: Numbers that have to come, in any order.
        uncertain: Numbers that may come: they were ready at a purge, or fetched ahead by then.
        held: What the consumer has and has not settled.
        dead: Numbers that were rejected.
        failures: What ended a machine, all of them together.
    """

    def __init__(self, stage: Stage, done: "Counter[str]", failures: list[Exception]) -> None:
        super().__init__()
        self.stage = stage
        self.done = done
        self.queue = stage.queue("model")
        self.dead_queue = f"{self.queue}-dead"
        self.known: dict[int, _Known] = {}
        self.ready: set[int] = set()
        self.uncertain: set[int] = set()
        self.held: list[tuple[Delivery, int]] = []
        self.dead: set[int] = set()
        self.trace: list[str] = []
        self.failures = failures
        self.failed = False
        done["example"] += 1
        self._connect()
        self._consume()

    def _connect(self) -> None:
        self.mq = self.stage.connect()
        self.producer = self.mq.producer(self.queue)

    def _consume(self) -> None:
        retry = Retry(attempts_max=10_000)
        self.consumer = self.mq.consumer(self.queue, retry=retry, prefetch=5, dead_letter=self.dead_queue)

    def _note(self, verb: str, *what: object) -> None:
        self.done[verb] += 1
        self.trace.append(" ".join([verb, *map(str, what)]))

    def _check(self, right: bool, text: str) -> None:
        assert right, f"{text}; before that: {'; '.join(self.trace[-STEPS_SHOWN:])}"

    @rule(verb=st.sampled_from(VERBS), size=st.integers(0, 7), place=st.integers(0, 50))
    def use(self, verb: str, size: int, place: int) -> None:
        """One rule for all: what Hypothesis draws may not depend on what came, which is the broker's to choose."""
        with self._noted_if_it_fails():
            self._use(verb, size, place)

    @contextlib.contextmanager
    def _noted_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, MQError) as error:
            self.failed = True
            self.failures.append(error)
            raise

    def _use(self, verb: str, size: int, place: int) -> None:
        if verb == "receive":
            self._note(verb, size + 1)
            self._take(size + 1)
        elif verb in ("send", "send_many", "submit"):
            self._send(verb, size)
        elif verb in ("restart", "close"):
            self._restart(everything=verb == "restart")
        elif verb == "purge":
            self._purge()
        elif self.held:
            self._settle(verb, *self.held[place % len(self.held)])

    def _send(self, verb: str, size: int) -> None:
        first = len(self.known)
        numbers = list(range(first, first + (1 if verb == "send" else size)))
        self.known |= {number: _Known(number) for number in numbers}
        self._note(verb, numbers)
        if verb == "send":
            self.producer.send(first)
        elif verb == "send_many":
            report = self.producer.send_many(numbers)
            self._check(not report.failures, f"sends failed: {report.failures}")
        else:
            for number in numbers:
                self.producer.submit(number)
            self.producer.flush()
        self.ready.update(numbers)
        self._may_have_been_fetched()

    def _take(self, size: int) -> list[int]:
        timeout = self.stage.seconds(PATIENCE) if self.ready else NOTHING
        if size == 1:
            delivery = self.consumer.receive(timeout=timeout)
            came = [] if delivery is None else [delivery]
        else:
            came = self.consumer.receive_many(size, timeout=timeout)
        self._check(len(came) <= size, f"{len(came)} came where {size} were asked for")
        self._check(bool(came) or not self.ready, f"nothing came, and {sorted(self.ready)} are there")
        numbers = [delivery.message.payload for delivery in came]
        for delivery, number in zip(came, numbers, strict=True):
            self._check(number in self.ready | self.uncertain, f"{number} came, which {self._where(number)}")
            self.ready.discard(number)
            self.uncertain.discard(number)
            known = self.known[number]
            count, least = delivery.delivery_count, 1 + known.failures
            self._check(
                least <= count <= least + known.returns, f"{number} counts {count} after {known}, not from {least}"
            )
            failures = delivery.message.failures
            # What goes back by the broker's own means is a failure to the connection that gave it back; to others, a delivery.
            lost = self.stage.capabilities.returns_count and failures < known.failures
            self._check(lost or failures == known.failures, f"{number} counts {failures} failures after {known}")
            self.held.append((delivery, number))
        self._may_have_been_fetched()
        return numbers

    def _may_have_been_fetched(self) -> None:
        """What nobody took may have been handed over, too late."""
        told = self.stage.capabilities
        if told.release is not Support.NATIVE or told.returns_count:
            for number in self.ready | self.uncertain:
                self.known[number].returns += 1

    def _where(self, number: Any) -> str:
        if number not in self.known:
            return "was never sent"
        if number in self.dead:
            return "was rejected"
        return "is held" if number in [held for _, held in self.held] else "was acked"

    def _settle(self, verb: str, delivery: Delivery, number: int) -> None:
        self._note(verb, number)
        if verb == "extend":
            delivery.extend(30.0)
            return
        self.held.remove((delivery, number))
        if verb == "ack":
            delivery.ack()
        elif verb == "nack":
            delivery.nack()
            self.known[number].failures += 1
            self.ready.add(number)
        else:
            delivery.reject("the model says so")
            self.dead.add(number)

    def _purge(self) -> None:
        if self.stage.capabilities.purge is Support.UNSUPPORTED:
            return
        self._note("purge")
        gone = self.mq.purge(self.queue)
        there = len(self.ready) + len(self.uncertain)
        self._check(gone is None or gone <= there, f"{gone} were purged, and {there} were there at the most")
        self.uncertain |= self.ready
        self.ready.clear()

    def _restart(self, *, everything: bool) -> None:
        """Close the consumer, or the connection, with whatever is held; and open it again."""
        self._note("restart", "the connection" if everything else "the consumer")
        self._may_have_been_fetched()
        if everything:
            self.mq.close()
        else:
            self.consumer.close()
        for _, number in self.held:
            self.known[number].returns += 1
            self.ready.add(number)
        self.held.clear()
        if everything:
            self._connect()
        self._consume()

    def teardown(self) -> None:
        """All that has to be there comes, and nothing else; also in the dead-letter queue."""
        if not self.failed:
            with self._noted_if_it_fails():
                self._note("drain")
                while self._take(4):
                    while self.held:
                        self.held.pop()[0].ack()
                self._drain_dead()
        self.mq.close()

    def _drain_dead(self) -> None:
        if not self.dead:
            return
        with self.mq.consumer(self.dead_queue) as consumer:
            came: list[int] = []
            while len(came) < len(self.dead):
                delivery = consumer.receive(timeout=self.stage.seconds(PATIENCE))
                self._check(delivery is not None, f"of the rejected {sorted(self.dead)} came only {came}")
                if delivery is not None:
                    came.append(delivery.message.payload)
                    delivery.ack()
            self._check(set(came) == self.dead, f"{sorted(self.dead)} were rejected, and {came} came")
            more = consumer.receive(timeout=NOTHING)
            self._check(more is None, f"more was dead-lettered than rejected: {more!r}")
