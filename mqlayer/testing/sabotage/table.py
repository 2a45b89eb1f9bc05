"""Who is sent into the suite, what must flag each, and what must not be alarmed."""

from dataclasses import dataclass

from mqlayer.testing.harness import BackendHarness
from mqlayer.testing.records import Verdict
from mqlayer.testing.sabotage import columns

__all__ = ["NOT_YET", "SABOTEURS", "Saboteur", "find_saboteur"]

INNOCENT = ("C01", "C11", "F1a")


@dataclass(frozen=True, slots=True)
class Saboteur:
    """One broken backend.

    Attributes:
        does: What it does, in a few words.
        expected: Each criterion that must flag it.
        verdict: How it is flagged. A harness that proves nothing must come out as ``unknown``, never as a pass.
        innocent: Criteria that it does not touch; they must not go red.
    """

    id: str
    harness: type[BackendHarness]
    does: str
    expected: tuple[str, ...]
    verdict: Verdict = Verdict.FAIL
    innocent: tuple[str, ...] = INNOCENT

    @property
    def name(self) -> str:
        return self.harness.__name__


SABOTEURS = (
    Saboteur("S1", columns.AckEarly, "acks before the handler has seen it", ("C15", "F1c", "F11")),
    Saboteur("S2", columns.Volatile, "keeps everything in memory", ("F1a", "F3a", "F3b"), innocent=("C01", "C11")),
    Saboteur("S3", columns.FlushOnExit, "writes only when it ends in order", ("F3b",), innocent=("C01", "C11", "F3a")),
    Saboteur("S5", columns.LieConfirm, "confirms before it sends", ("F6", "F7")),
    Saboteur("S6", columns.SwallowErrors, "says of every failed send that it succeeded", ("F7", "C34")),
    Saboteur("S7", columns.LosesOnReconnect, "forgets what was on its way", ("F10", "C35")),
    Saboteur("S8", columns.DupEvery100, "delivers each hundredth twice", ("C10", "F10"), innocent=("C01", "C11")),
    Saboteur("S9", columns.Reorder, "swaps neighbours", ("C08",)),
    # Swapped neighbours are of different groups where a group has one message in flight at a time.
    Saboteur("S9b", columns.LooseGroups, "takes each message for a group of its own", ("C09",)),
    Saboteur("S10", columns.DropHeaders, "loses headers with names beyond ASCII", ("C02",)),
    Saboteur("S10b", columns.RetypeHeaders, "makes text of numbers", ("C02",), innocent=("C11", "F1a")),
    Saboteur("S11", columns.Truncate64K, "cuts bodies at 64 KiB", ("C06",)),
    # The ledgers' bodies are arbitrary bytes.
    Saboteur("S11b", columns.StripNUL, "ends bodies at their first NUL", ("C07",), innocent=("C11", "C12")),
    Saboteur("S12", columns.Resurrect, "hands acked messages over again after a restart", ("F5",)),
    Saboteur("S13", columns.ForgetQueues, "loses the options of queues in a restart", ("F2",)),
    Saboteur("S14", columns.ZombieConsumer, "connects again and does not subscribe again", ("F8",)),
    Saboteur("S15", columns.LateAckWins, "lets a late ack take another's message", ("C16",)),
    Saboteur("S16", columns.Phantom, "says refused of what it sent", ("F7",), innocent=("C04", "C11")),
    Saboteur("S17", columns.PrefetchHog, "fetches all there is", ("C18",)),
    Saboteur("S20", columns.HangForever, "notices no dead connection", ("F9", "F12b")),
    Saboteur(
        "S21", columns.FakeKill, "its server outlives SIGKILL", ("F1a",), Verdict.UNKNOWN, innocent=("C01", "C11")
    ),
    Saboteur("S22", columns.EmptyRun, "its producers send nothing", ("F1a",), Verdict.UNKNOWN, innocent=("C01", "C11")),
    Saboteur("S23", columns.NoDrain, "its drains look at nothing", ("F1a",), Verdict.UNKNOWN, innocent=("C01", "C11")),
)

NOT_YET = {
    "S4": ("NoFsync", "needs the power-loss criterion F3c, which is not part of this version"),
    "S18": ("TornTail", "needs the torn-write criterion F14, which is not part of this version"),
    "S19": ("WallClockLeases", "needs the clock criterion F15, which is not part of this version"),
}


def find_saboteur(id: str) -> Saboteur:
    """Raises ``KeyError``."""
    return {each.id: each for each in SABOTEURS}[id]
