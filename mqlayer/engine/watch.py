"""Notices a consumer that is connected but not consuming: callers wait, the queue has messages, and nothing arrives."""

import logging

from mqlayer.clock import Clock
from mqlayer.driver import Session
from mqlayer.engine.intake import Intake
from mqlayer.errors import MQError

__all__ = ["Watch"]

WATCH = 30.0  #: seconds without a delivery, while somebody waits for one, before the queue is looked at
LOOK_TIMEOUT = 5.0  #: seconds for one look
log = logging.getLogger("mqlayer")


class Watch:
    """Looks now and then, and has a silent consumer subscribe anew."""

    def __init__(self, name: str, intake: Intake, clock: Clock) -> None:
        self._name = name
        self._intake = intake
        self._clock = clock
        self._looked_at = clock.monotonic()
        self.renewed = 0  #: how often a silent consumer was found

    def look(self, session: Session) -> None:
        """At each turn of the owner; nearly always too early."""
        now = self._clock.monotonic()
        if now - self._looked_at < WATCH:
            return
        self._looked_at = now
        intake = self._intake
        if not intake.waiting or now - intake.arrived_at < WATCH:
            return
        for queue in intake.queues:
            try:
                ready = session.stats(queue, LOOK_TIMEOUT).ready
            except MQError as error:  # the connection's own trouble, which is noticed and mended elsewhere
                log.debug("%s: no look at %r: %s", self._name, queue, error)
                return
            if ready:
                log.warning("%s: %d messages wait in %r and none arrives; subscribing anew", self._name, ready, queue)
                self.renewed += 1
                intake.resubscribe(queue)
