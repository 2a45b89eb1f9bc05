"""The criteria of the durability suite, in the order in which the matrix shows them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["CATALOGUE", "FAILSAFE", "SEEDS", "Criterion", "Seed", "by_id"]

FAILSAFE = "failsafe"


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that the suite asks of a backend.

    Attributes:
        requires: What a backend has to claim before this is asked of it, separated by blanks: fields of
            ``Capabilities``, claims of the harness (``graceful``, ``sigkill``, ``power_loss``, ``queues``), or
            ``server``. Empty: asked of all.
        later: Not part of this version's runs, so without a row until there is a record of it.
    """

    id: str
    title: str
    group: str
    requires: str = ""
    later: bool = False


@dataclass(frozen=True, slots=True)
class Seed:
    """One of the three questions that the matrix answers first, by several criteria together.

    Attributes:
        parts: Label → criteria. With one part the criteria become one verdict; with more, each part has its own.
    """

    title: str
    parts: Mapping[str, tuple[str, ...]]


SEEDS = (
    Seed(
        "(1) survive a server failure",
        MappingProxyType({"F1a–d F4 F8 F10": ("F1a", "F1b", "F1c", "F1d", "F4a", "F4b", "F4c", "F8", "F10")}),
    ),
    Seed("(2) queues are rebuilt", MappingProxyType({"F2 F2b": ("F2", "F2b")})),
    Seed(
        "(3) messages persist",
        MappingProxyType({"graceful F3a": ("F3a",), "SIGKILL F3b": ("F3b",), "power loss F3c": ("F3c",)}),
    ),
)

_FAILSAFE = (
    ("F1a", "killed while idle: every confirmed message is there", "sigkill"),
    ("F1b", "killed amid publishing: nothing confirmed is lost", "sigkill"),
    ("F1c", "killed amid consuming: what was unsettled comes back", "sigkill"),
    ("F1d", "killed amid an ack: gone or back, never in between", "sigkill"),
    ("F2", "queues return with their options, and serve", "queues"),
    ("F2b", "a queue killed right after its declare serves", "queues"),
    ("F3a", "messages outlive a graceful stop", "graceful"),
    ("F3b", "messages outlive SIGKILL", "sigkill"),
    ("F3c", "messages outlive a power loss", "power_loss"),
    ("F4a", "unsettled at the kill: delivered again, counted", "sigkill"),
    ("F4b", "delayed, dead-lettered and leased messages outlive a kill", "sigkill"),
    ("F4c", "killed while delayed messages fall due", "delay sigkill"),
    ("F5", "what was acked and settled stays away", "sigkill"),
    ("F6", "ten kills amid publishing: no confirm was a lie", "sigkill"),
    ("F7", "a lost confirm is an unknown outcome, never a success", ""),
    ("F8", "a consumer goes on by itself over three kills", "sigkill server"),
    ("F9", "a blocked producer waits, then goes on", "backpressure server"),
    ("F10", "twenty kills under load, every message accounted for", "sigkill"),
    ("F11", "a consumer killed in mid batch: just its unsettled ones return", ""),
    ("F12a", "connections reset", "server"),
    ("F12b", "connections that fall silent are noticed", "server"),
    ("F12c", "the way is cut, in either direction", "server"),
    ("F12d", "a slow link in small pieces", "server"),
    ("F13", "a full disk", ""),
    ("F14", "a torn write", ""),
    ("F14b", "a failing fsync", ""),
    ("F15", "the clock jumps", ""),
    ("F16", "asked for more durability than there is, it says so", ""),
    ("F17", "time from restart to first delivery", ""),
)
_LATER = frozenset({"F3c", "F13", "F14", "F14b", "F15", "F16", "F17"})

_CONTRACT: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "messages",
        (
            ("C01", "round trip", ""),
            ("C02", "headers keep names, values and types", ""),
            ("C03", "bytes, text and JSON keep their type", ""),
            ("C04", "empty bodies", ""),
            ("C05", "Unicode", ""),
            ("C06", "large bodies, and a clear refusal above the limit", ""),
            ("C07", "arbitrary bytes", ""),
            ("C19", "many sent at once: an answer for each, in order", ""),
            ("C20", "one of a batch refused: only that one", ""),
            ("C37", "dedup_id", "dedup_id"),
        ),
    ),
    (
        "order and sharing",
        (
            ("C08", "order, one producer and one consumer", "ordered"),
            ("C09", "order within a group over many consumers", "group_id"),
            ("C10", "competing consumers: each message to one", ""),
            ("C18", "prefetch is a bound", ""),
            ("C36", "many producers at once", ""),
            ("C43", "topics: a copy for each group", "topics"),
        ),
    ),
    (
        "settling",
        (
            ("C11", "acked is gone", ""),
            ("C12", "nacked comes back, counted", ""),
            ("C13", "rejected or exhausted goes to the dead letters", "dead_letter"),
            ("C14", "delivery_count", "delivery_count"),
            ("C15", "a killed consumer's messages go to another", ""),
            ("C16", "a late ack takes nothing from the new holder", "timed_lease"),
            ("C17", "an extended lease holds", ""),
            ("C21", "received as a batch, settled in part", ""),
            ("C41", "a poison message is dead-lettered alone", "delivery_count"),
            ("C42", "ten delayed nacks leave the message intact", "delay"),
        ),
    ),
    (
        "timing and priority",
        (
            ("C22", "delay", "delay"),
            ("C23", "priority", "priority"),
            ("C24", "ttl", "ttl"),
            ("C31", "receive times out on time, at rest", ""),
        ),
    ),
    (
        "queues",
        (
            ("C25", "purge", "purge"),
            ("C26", "stats", "stats"),
            ("C27", "declaring again", ""),
            ("C28", "delete", ""),
            ("C29", "an unknown queue is never silent", ""),
            ("C44", "peek changes nothing", "peek"),
        ),
    ),
    (
        "connections",
        (
            ("C30", "closed objects say so, and close unblocks", ""),
            ("C32", "threads share a connection", ""),
            ("C33", "fork", ""),
            ("C34", "a lost connection surfaces", "server"),
            ("C35", "reconnecting, without a leak", "server"),
            ("C38", "the URL is all that changes", ""),
        ),
    ),
    (
        "as a whole",
        (
            ("C39", "random use against a model", ""),
            ("C40", "what is declared absent is refused before it leaves", ""),
        ),
    ),
)

CATALOGUE: tuple[Criterion, ...] = (
    *(Criterion(id, title, FAILSAFE, requires, id in _LATER) for id, title, requires in _FAILSAFE),
    *(Criterion(id, title, group, requires) for group, rows in _CONTRACT for id, title, requires in rows),
)


def by_id(catalogue: Iterable[Criterion]) -> Mapping[str, Criterion]:
    """The criteria by their ids.

    Raises:
        ValueError: two have the same id.
    """
    found: dict[str, Criterion] = {}
    for criterion in catalogue:
        if criterion.id in found:
            raise ValueError(f"criterion {criterion.id} is in the catalogue twice")
        found[criterion.id] = criterion
    return found
