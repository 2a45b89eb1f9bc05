"""What was measured where: the machine, the versions, the load."""

import datetime
import os
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.places import file_system
from mqlayer.testing.brokers import rabbitmq

__all__ = ["describe"]

PACKAGES = ("mqlayer", "pika", "kombu", "amqp", "persist-queue", "msgspec")


def describe(directory: Path | None) -> dict[str, Any]:
    """All that a reader needs in order to compare figures with another run's."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "file_system": file_system(directory or Path(tempfile.gettempdir())),
        "load_before": round(os.getloadavg()[0], 2),
        "rabbitmq": rabbitmq.version() or "not installed",
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # not installed is an answer too
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
