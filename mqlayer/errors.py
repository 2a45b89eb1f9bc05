"""Every error that mqlayer raises. All names end in ``Error``; all derive from :class:`MQError`.

::

    MQError
    ├── ConfigError                 the URL, an option or the installation is wrong; nothing was tried
    │   ├── UnknownSchemeError
    │   ├── UnknownOptionError
    │   ├── MissingExtraError
    │   └── UnmetNeedError
    ├── BrokerError                 the broker, or the way to it, failed
    │   ├── ConnectFailedError
    │   │   └── AuthenticationError
    │   ├── ConnectionLostError
    │   ├── ThrottledError
    │   ├── QueueNotFoundError
    │   ├── QueueMismatchError
    │   └── StoreError              an embedded store cannot be read or written
    ├── SendError                   a message was not confirmed; ``fate`` says what is known of it
    │   ├── RefusedError            certainly not stored: it was refused
    │   │   ├── MessageTooLargeError
    │   │   ├── HeaderError
    │   │   ├── EncodeError
    │   │   └── UnroutableError     also a QueueNotFoundError
    │   ├── NotSentError            certainly not stored: it never left
    │   │   └── SendTimeoutError    it waited for window or a blocked broker and never left
    │   └── OutcomeUnknownError     it may or may not be stored
    ├── MessageError
    │   └── UndecodableError        a received body is not what its content type says
    ├── UsageError                  the call itself is wrong
    │   ├── ClosedError
    │   ├── AlreadySettledError
    │   ├── StaleDeliveryError      the lease or the connection is gone; the broker already has the message back
    │   ├── UnsupportedError
    │   ├── ForkedError
    │   └── ArgumentError
    └── RequestTimeoutError         a call other than a send got no answer in time

``retryable`` says whether the same call may succeed later without a change by the caller.
"""

from enum import Enum

__all__ = [
    "AlreadySettledError",
    "ArgumentError",
    "AuthenticationError",
    "BrokerError",
    "ClosedError",
    "ConfigError",
    "ConnectFailedError",
    "ConnectionLostError",
    "EncodeError",
    "Fate",
    "ForkedError",
    "HeaderError",
    "MQError",
    "MessageError",
    "MessageTooLargeError",
    "MissingExtraError",
    "NotSentError",
    "OutcomeUnknownError",
    "QueueMismatchError",
    "QueueNotFoundError",
    "RefusedError",
    "RequestTimeoutError",
    "SendError",
    "SendTimeoutError",
    "StaleDeliveryError",
    "StoreError",
    "ThrottledError",
    "UndecodableError",
    "UnknownOptionError",
    "UnknownSchemeError",
    "UnmetNeedError",
    "UnroutableError",
    "UnsupportedError",
    "UsageError",
]


class MQError(Exception):
    """The root of every error of mqlayer."""

    retryable = False


class ConfigError(MQError):
    """The URL, an option or the installation is wrong. Nothing was connected."""


class UnknownSchemeError(ConfigError):
    """No backend is registered for the URL's scheme."""


class UnknownOptionError(ConfigError):
    """The backend has no option of that name."""


class MissingExtraError(ConfigError):
    """The backend's client library is not installed; the text names the ``pip install`` that mends it."""


class UnmetNeedError(ConfigError):
    """``connect(needs=…)`` asked for something that the backend does not have."""


class BrokerError(MQError):
    """The broker, or the way to it, failed."""

    retryable = True


class ConnectFailedError(BrokerError):
    """No host of the URL could be connected to."""


class AuthenticationError(ConnectFailedError):
    """The broker refused the credentials, or the virtual host."""

    retryable = False


class ConnectionLostError(BrokerError):
    """The connection ended. What was in flight has an unknown outcome."""


class ThrottledError(BrokerError):
    """The broker asks to slow down."""


class QueueNotFoundError(BrokerError):
    """The queue does not exist, and this call does not create it."""

    retryable = False


class QueueMismatchError(BrokerError):
    """The queue exists with other options than the declared ones."""

    retryable = False


class StoreError(BrokerError):
    """An embedded store cannot be read or written: not a database, a full disk, no permission."""


class Fate(Enum):
    """What is known of a message whose send failed."""

    REFUSED = "refused"  #: not stored: the broker or mqlayer refused it
    NOT_SENT = "not sent"  #: not stored: no byte of it left
    UNKNOWN = "unknown"  #: stored or not; sending it again may repeat it


class SendError(MQError):
    """A message was not confirmed.

    Attributes:
        fate: What is known of the message.
        message_id: The id under which it was sent, or would have been.
    """

    fate = Fate.UNKNOWN

    def __init__(self, text: str, *, message_id: str | None = None) -> None:
        super().__init__(text)
        self.message_id = message_id


class RefusedError(SendError):
    """The message is certainly not stored: the broker or mqlayer refused it."""

    fate = Fate.REFUSED


class MessageTooLargeError(RefusedError):
    """The body is larger than the broker takes."""


class HeaderError(RefusedError):
    """A header's name or value cannot travel, or the name is reserved."""


class EncodeError(RefusedError):
    """The payload cannot be encoded for its content type."""


class UnroutableError(RefusedError, QueueNotFoundError):
    """The queue that the message was sent to does not exist."""


class NotSentError(SendError):
    """The message is certainly not stored: no byte of it left."""

    fate = Fate.NOT_SENT
    retryable = True


class SendTimeoutError(NotSentError):
    """The message waited for room or for a blocked broker, and never left."""


class OutcomeUnknownError(SendError):
    """The message left, or may have, and no answer came. It may be stored; sending it again may repeat it."""

    fate = Fate.UNKNOWN
    retryable = True


class MessageError(MQError):
    """Something is wrong with a received message."""


class UndecodableError(MessageError):
    """The body is not what its content type says. ``body`` still has the bytes."""


class UsageError(MQError):
    """The call itself is wrong; the broker was not asked."""


class ClosedError(UsageError):
    """The connection, producer or consumer is closed."""


class AlreadySettledError(UsageError):
    """The delivery was settled before."""


class StaleDeliveryError(UsageError):
    """The delivery's lease or connection is gone; the broker already has the message back."""


class UnsupportedError(UsageError):
    """The backend cannot do this; no byte of the message left."""


class ForkedError(UsageError):
    """The object belongs to the parent process and cannot follow into a fork."""


class ArgumentError(UsageError):
    """An argument has a wrong type or value."""


class RequestTimeoutError(MQError):
    """A call other than a send got no answer within its timeout. It may still take effect."""

    retryable = True
