"""What the server says to frames that asked for a receipt. No I/O."""

from collections.abc import Iterable

from mqlayer.backends.stomp_wire import Frame

__all__ = ["Answer", "Answers", "is_denied", "text_of"]

_DENIED = (  # what servers say of credentials and permissions; STOMP has no codes
    *("user name", "password", "security", "login", "passcode", "credential", "authenti", "access refused", "denied"),
    *("not authorized", "not_authorized", "does not have permission"),
)


class Answer:
    """What the server said to one frame that asked for a receipt.

    Attributes:
        done: The receipt came.
        error: Or an ERROR frame that names it: why it was refused.
        stray: An ERROR frame that names nothing came before it: why something in its transaction was refused.
        covers: How many frames of a transaction, which have no receipts of their own, it stands for.
        begins: Where its bytes are in all that was ever written.
    """

    __slots__ = ("begins", "covers", "done", "error", "stray")

    def __init__(self, begins: int, covers: int) -> None:
        self.done = False
        self.error: str | None = None
        self.stray: str | None = None
        self.covers = covers
        self.begins = begins

    def __bool__(self) -> bool:
        return self.done or self.error is not None

    @property
    def refusal(self) -> str | None:
        """Why not all that it covers was done."""
        return self.error or self.stray


class Answers:
    """Those that are still to come, by the receipt that their frames asked for."""

    def __init__(self) -> None:
        self._pending: dict[str, Answer] = {}
        self._receipts = 0
        self._stray: str | None = None
        self._forgiven = 0  # ERROR frames that name nothing and may still come of a transaction that was refused

    def expect(self, begins: int, covers: int) -> tuple[str, Answer]:
        """A new receipt to ask for, and what the server will have said to it."""
        self._receipts += 1
        receipt = str(self._receipts)
        answer = self._pending[receipt] = Answer(begins, covers)
        return receipt, answer

    def forget(self, answers: Iterable[Answer]) -> None:
        """Nobody waits for these any more."""
        gone = set(map(id, answers))
        self._pending = {receipt: answer for receipt, answer in self._pending.items() if id(answer) not in gone}

    def take(self, frame: Frame, *, ends_on_error: bool) -> str | None:
        """Note a RECEIPT or an ERROR. Returns why the connection is of no more use; ``None``: it is."""
        answer = self._pending.pop(frame.headers.get("receipt-id", ""), None)
        refused = frame.command == "ERROR"
        if answer is not None:
            answer.done, answer.error = not refused, text_of(frame) if refused else None
            answer.stray, self._stray = self._stray, None
        if not refused:
            return None
        if not ends_on_error:
            # ActiveMQ does not commit a transaction in which something failed (TransportConnection's
            # forceRollbackOnlyOnFailedAsyncTransactionOp). It says so of the COMMIT, and, soon before or after, of each
            # frame that failed, which has no receipt and so is not named.
            if answer is not None:
                self._forgiven = answer.covers
                return None
            if self._forgiven:
                self._forgiven -= 1
                return None
            if any(pending.covers for pending in self._pending.values()):
                self._stray = self._stray or text_of(frame)
                return None
        # "The server MUST then close the connection" (STOMP 1.2, ERROR). Of one that names no frame we do not know what
        # failed, so everything that is on its way is unknown.
        return text_of(frame)


def text_of(frame: Frame) -> str:
    """An ERROR frame in one line; a Java stack trace is left out."""
    body = frame.body.decode("utf-8", "replace").strip().partition("\n")[0]
    said = frame.headers.get("message") or body
    return " ".join((said if not body or said in body else f"{said}: {body}").split())[:300]


def is_denied(text: str) -> bool:
    """The server means the credentials, or a permission."""
    return any(word in text.lower() for word in _DENIED)
