"""The service as its client sees it: boto3's clients, its errors as ours, and the addresses of queues.

Nothing is tried twice: boto3's own retries are off. No error repeats a credential.
"""

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from mqlayer.errors import (
    ArgumentError,
    AuthenticationError,
    BrokerError,
    ConnectFailedError,
    ConnectionLostError,
    MessageTooLargeError,
    MQError,
    NotSentError,
    OutcomeUnknownError,
    QueueNotFoundError,
    RefusedError,
    RequestTimeoutError,
    SendError,
    ThrottledError,
    UnroutableError,
)

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

__all__ = ["Service", "failed_entry", "fate_of", "translated"]

REQUESTS_MAX = 4  #: of one session at the same time, polls not counted: more gain nothing, for Python or the service
CONNECT_TIMEOUT = 5.0  #: seconds for a connection to be made
READ_TIMEOUT = 10.0  #: seconds without a byte of an answer, beyond what the service was asked to wait
CONNECTIONS_MAX = 32  #: kept open for later requests

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html and the errors of each action
_THROTTLED = frozenset({
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
    "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "SlowDown", "PriorRequestNotComplete",
    "KmsThrottled", "KMS.ThrottlingException", "OverLimit",
    "QueueDeletedRecently",  # "You must wait 60 seconds after deleting a queue before you can create another"
})  # fmt: skip
_FORBIDDEN = frozenset({
    "AccessDenied", "AccessDeniedException", "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature",
    "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidSecurity", "KmsAccessDenied", "MissingAuthenticationToken",
    "NotAuthorized", "OptInRequired", "RequestExpired", "SignatureDoesNotMatch", "UnrecognizedClientException",
})  # fmt: skip
_AUTHENTIC = frozenset({"AccessDenied", "AccessDeniedException"})  #: known to the service, and not allowed to do this
_MISSING = frozenset({"QueueDoesNotExist", "NonExistentQueue", "AWS.SimpleQueueService.NonExistentQueue"})
_TOO_LARGE = frozenset({"BatchRequestTooLong", "MessageTooLong"})
T = TypeVar("T")
_SERVER_ERROR = 500
_TOO_MANY = 429


class Service:
    """Two clients of one region: for long polls, and for all else, which is given up sooner.

    Made once for a connection's sessions: a client costs 70 ms and 9 MiB, and threads may share it.
    """

    def __init__(self, *, region: str, endpoint: str | None, wait: int) -> None:
        session = translated("looking for a region", lambda: boto3.session.Session(region_name=region))
        if translated("looking for credentials", session.get_credentials) is None:
            raise AuthenticationError(
                "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )

        def client(read_timeout: float) -> "SQSClient":
            config = _config(read_timeout)
            made: SQSClient = translated(
                "connecting", lambda: session.client("sqs", endpoint_url=endpoint, config=config)
            )
            return made

        self.client = client(READ_TIMEOUT)
        self.poller = client(READ_TIMEOUT + wait)
        self._lock = threading.Lock()
        self._urls: dict[str, str] = {}

    def greet(self) -> None:
        """One round trip, to see that the service is there and knows us.

        Raises:
            ConnectFailedError: it did not answer. AuthenticationError: it does not know us.
        """
        try:
            translated("connecting", lambda: self.client.list_queues(MaxResults=1))
        except AuthenticationError as error:
            cause = error.__cause__
            if not (isinstance(cause, boto.ClientError) and _code(cause.response.get("Error", {})) in _AUTHENTIC):
                raise
        except MQError as error:
            raise ConnectFailedError(str(error)) from error

    def url(self, name: str) -> str:
        """The address of a queue; asked for once.

        Raises:
            QueueNotFoundError
        """
        with self._lock:
            known = self._urls.get(name)
        if known is not None:
            return known
        url = translated(f"looking for queue {name!r}", lambda: self.client.get_queue_url(QueueName=name))["QueueUrl"]
        self.remember(name, url)
        return url

    def known(self, name: str) -> str | None:
        """The address of a queue, if it was asked for before."""
        with self._lock:
            return self._urls.get(name)

    def remember(self, name: str, url: str) -> None:
        """A queue is there."""
        with self._lock:
            self._urls[name] = url

    def forget(self, name: str) -> None:
        """A queue is gone, or may be."""
        with self._lock:
            self._urls.pop(name, None)

    def forget_all(self) -> None:
        """Some queue is gone, and nobody knows which."""
        with self._lock:
            self._urls.clear()

    def let_go(self) -> None:
        """Close idle connections: they may be as dead as one that failed, and would be kept. Others can be made."""
        self.client.close()
        self.poller.close()


def _config(read_timeout: float) -> Config:
    return Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=read_timeout,
        max_pool_connections=CONNECTIONS_MAX,
        parameter_validation=False,  # a request is made of what was checked here; it would cost 6 %
    )


def translated(what: str, call: Callable[[], T]) -> T:
    """What *call* returns, with boto3's errors as ours. *what* was being done, for the text.

    The cause of a transport's error is its text alone: the error itself holds the signed request, and through its
    traceback the connections of the pool, which would stay open for as long as anybody keeps the error.
    """
    failure: MQError
    try:
        return call()
    except boto.ClientError as exc:
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        failure = _error(exc.response.get("Error", {}), status, what)
        failure.__cause__ = exc.with_traceback(None)
    except (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
    ) as exc:
        failure = AuthenticationError(f"{what}: no usable AWS credentials: {type(exc).__name__}")
    except (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError) as exc:
        failure = ConnectFailedError(f"{what}: SQS cannot be reached: {type(exc).__name__}")
        failure.__cause__ = ConnectionError(str(exc))
    except boto.HTTPClientError as exc:  # a read timeout, a connection that was closed, a broken answer
        failure = ConnectionLostError(f"{what}: the connection to SQS was lost: {type(exc).__name__}")
        failure.__cause__ = ConnectionError(str(exc))
    except boto.BotoCoreError as exc:
        failure = BrokerError(f"{what}: {type(exc).__name__}: {exc}")
    raise failure  # out here, where it has no context


def _code(error: Mapping[str, Any]) -> str:
    return str(error.get("Code", "")).rpartition("#")[2].removeprefix("AWS.SimpleQueueService.")


def _error(error: Mapping[str, Any], status: int, what: str) -> MQError:
    code, said = _code(error), str(error.get("Message", ""))
    if code in _FORBIDDEN:
        return AuthenticationError(f"{what}: SQS refuses: {code}")  # its text may repeat what was signed
    text = f"{what}: SQS answers {code or status}: {said}"
    if code in _THROTTLED or status == _TOO_MANY:
        return ThrottledError(text)
    if code in _MISSING:
        return QueueNotFoundError(text)
    if code in _TOO_LARGE or said == "MessageTooLong":
        return MessageTooLargeError(text)
    return BrokerError(text) if status >= _SERVER_ERROR else ArgumentError(text)


def failed_entry(failed: Mapping[str, Any], what: str) -> MQError:
    """Why one entry of a batch failed whose other entries may have gone well."""
    return _error(failed, 0 if failed.get("SenderFault") else _SERVER_ERROR, what)


def fate_of(error: MQError, message_id: str | None, *, begun: bool = True) -> MQError:
    """What *error* means for a message that was being sent. *begun*: some of the request may have left."""
    if isinstance(error, (ThrottledError, SendError)) and not isinstance(error, MessageTooLargeError):
        return error
    text = str(error)
    fate: SendError
    if isinstance(error, QueueNotFoundError):
        fate = UnroutableError(text, message_id=message_id)
    elif isinstance(error, MessageTooLargeError):
        fate = MessageTooLargeError(text, message_id=message_id)
    elif isinstance(error, (AuthenticationError, ArgumentError)):
        fate = RefusedError(text, message_id=message_id)
    elif isinstance(error, ConnectFailedError) or not begun:
        fate = NotSentError(text, message_id=message_id)
    elif isinstance(error, (ConnectionLostError, RequestTimeoutError, BrokerError)):
        fate = OutcomeUnknownError(text, message_id=message_id)
    else:
        return error
    fate.__cause__ = error
    return fate
