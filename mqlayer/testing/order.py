"""In which order messages came, and where in each producer's sequence the missing ones lie. Plain functions of ids."""

from collections.abc import Iterable, Mapping

from mqlayer.testing.ledger import Event

__all__ = ["Order", "where_lost"]

_Stream = tuple[str | None, str | None, str, str | None]


class Order:
    """Follows each producer's sequence as each consumer saw it.

    A violation is a first delivery that comes after the first delivery of a later message. A further delivery behind a
    later one is a regression: brokers promise no order for those.

    Args:
        groups_share: Messages with a group are looked at over all consumers together.
    """

    def __init__(self, *, groups_share: bool) -> None:
        self._groups_share = groups_share
        self._last: dict[_Stream, int] = {}
        self.violations: list[str] = []
        self.regressions = 0

    def delivered(self, id: str, event: Event, first: bool) -> None:
        producer, counter = split_id(id)
        if counter is None:
            return
        alone = self._groups_share and event.group is not None
        stream = (None if alone else event.actor, event.queue, producer, event.group)
        last = self._last.get(stream, -1)
        if counter > last:
            if first:
                self._last[stream] = counter
        elif first:
            self.violations.append(id)
        else:
            self.regressions += 1


def split_id(id: str) -> tuple[str, int | None]:
    """Producer and counter; no counter where the id is not one of ours."""
    producer, colon, counter = id.rpartition(":")
    return (producer, int(counter)) if colon and counter.isdecimal() else (id, None)


def where_lost(lost: Iterable[str], delivered: Iterable[str]) -> Mapping[str, Mapping[str, int]]:
    """Producer → how many of its lost messages lie before its first delivered one, amid, and after its last.

    Of a producer with nothing delivered at all, everything counts as after.
    """
    missing: dict[str, list[int]] = {}
    for id in lost:
        producer, counter = split_id(id)
        if counter is not None:
            missing.setdefault(producer, []).append(counter)
    if not missing:
        return {}
    ends: dict[str, tuple[int, int]] = {}
    for id in delivered:
        producer, counter = split_id(id)
        if counter is not None and producer in missing:
            low, high = ends.get(producer, (counter, counter))
            ends[producer] = (min(low, counter), max(high, counter))
    return {producer: _split(counters, *ends.get(producer, (-1, -1))) for producer, counters in missing.items()}


def _split(counters: list[int], low: int, high: int) -> dict[str, int]:
    prefix = sum(counter < low for counter in counters)
    postfix = sum(counter > high for counter in counters)
    return {"prefix": prefix, "middle": len(counters) - prefix - postfix, "postfix": postfix}
