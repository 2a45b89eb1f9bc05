"""What the command's exit codes mean, and which error leads to which: the one place where errors become text."""

import os
import re
import sys
import traceback
from enum import IntEnum

from mqlayer import errors

__all__ = ["ExitCode", "exit_code", "hide_passwords", "report"]


class ExitCode(IntEnum):
    """How the command ended."""

    DONE = 0
    NEGATIVE = 1  #: it worked, and the answer is no: nothing received, a missing queue, a red criterion
    USAGE = 2  #: arguments, URL, credentials, installation: the same call will fail again
    UNREACHABLE = 3  #: the broker, or the way to it, failed
    UNKNOWN = 4  #: it may or may not have happened
    INTERRUPTED = 130  #: Ctrl-C


# The first that fits counts, so what is special stands before what is general.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (KeyboardInterrupt, ExitCode.INTERRUPTED),
    (errors.QueueNotFoundError, ExitCode.NEGATIVE),
    (errors.QueueMismatchError, ExitCode.NEGATIVE),
    (errors.MessageError, ExitCode.NEGATIVE),
    (errors.AuthenticationError, ExitCode.USAGE),
    (errors.BrokerError, ExitCode.UNREACHABLE),
    (errors.MessageTooLargeError, ExitCode.USAGE),
    (errors.HeaderError, ExitCode.USAGE),
    (errors.EncodeError, ExitCode.USAGE),
    (errors.RefusedError, ExitCode.NEGATIVE),
    (errors.NotSentError, ExitCode.UNREACHABLE),
    (errors.SendError, ExitCode.UNKNOWN),
    (errors.RequestTimeoutError, ExitCode.UNKNOWN),
    # The broker hands the message over again, although it was printed here.
    (errors.StaleDeliveryError, ExitCode.UNKNOWN),
    (errors.ConfigError, ExitCode.USAGE),
    (errors.UsageError, ExitCode.USAGE),
    # What else is ours: servers that do not start, ports that are taken.
    (errors.MQError, ExitCode.UNREACHABLE),
    # A folder that cannot be written, a file that is not there. A closed pipe is nobody's mistake.
    (BrokenPipeError, ExitCode.NEGATIVE),
    (OSError, ExitCode.USAGE),
)


def exit_code(error: BaseException) -> ExitCode | None:
    """The code for an error that a user can understand; ``None`` for one that is a defect of ours."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


def report(error: BaseException, *, verbose: bool) -> None:
    """Say on standard error what went wrong, in one paragraph; with *verbose*, how it came about as well."""
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has stopped. Python would complain about it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if verbose:
        sys.stderr.write(hide_passwords("".join(traceback.format_exception(error))))
    if isinstance(error, KeyboardInterrupt):
        return
    text = str(error) or type(error).__name__
    if isinstance(error, errors.SendError) and error.message_id:
        text += f" (message {error.message_id}: {error.fate.value})"
    sys.stderr.write(hide_passwords(f"mqlayer: {text}\n"))


_LOGIN = re.compile(r"([A-Za-z][\w+.-]*://[^\s/:@]*):[^\s/]*@")


def hide_passwords(text: str) -> str:
    """*text* with the passwords of the URLs in it replaced."""
    return _LOGIN.sub(r"\1:***@", text)
