"""What the brokers that run on Java have in common."""

import os
import shutil
from pathlib import Path

from mqlayer.testing.processes import ServerError

__all__ = ["JAVA_FLAGS", "cache_folder", "environment", "find_java", "java_command"]

# A test machine has few cores and other brokers to run; a broker that lives for seconds does not repay a better compiler.
JAVA_FLAGS = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


def find_java() -> str | None:
    """The ``java`` on the PATH."""
    return shutil.which("java")


def java_command(datadir: Path, *arguments: str) -> list[str]:
    """A command line that keeps what Java writes inside *datadir*."""
    java = find_java()
    if java is None:
        raise ServerError("Java is not installed: apt-get install default-jre-headless")
    temporary = datadir / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return [java, *JAVA_FLAGS, f"-Djava.io.tmpdir={temporary}", "-XX:-UsePerfData", *arguments]


def environment(datadir: Path) -> dict[str, str]:
    """The whole environment: nothing of the caller's, whose JAVA_TOOL_OPTIONS and the like would lead astray."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(datadir)}


def cache_folder() -> Path:
    """Where brokers that no distribution has are kept for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mqlayer"
