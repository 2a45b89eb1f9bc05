"""ElasticMQ, which speaks SQS's protocol, as a child process: its messages in a file of H2, in its data folder.

Amazon's own service cannot be killed by us; this one can. It comes from Maven Central, into a cache of the user's.
"""

import json
import os
import shutil
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from mqlayer.testing.ports import LOOPBACK
from mqlayer.testing.processes import ProcessServer, ServerError

__all__ = ["INSTALL", "RELEASE", "elasticmq_server", "find_elasticmq", "library", "probe", "version"]

RELEASE = "1.7.1"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_MAIN = "org.elasticmq.server.Main"
_SMALL = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_READY_TIMEOUT = 60.0
_PROBE_TIMEOUT = 5.0


def library() -> Path:
    """Where its jars are, or are to be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mqlayer" / f"elasticmq-{RELEASE}"


INSTALL: tuple[str, ...] = (
    *("mvn", "--quiet", "--batch-mode", "--file", str(Path(__file__).with_name("elasticmq-pom.xml")), _COPY),
    *(f"-DoutputDirectory={library()}", "-DincludeScope=runtime"),
)
"""The command that installs it. It needs Maven and, as the broker does, Java: ``apt-get install maven default-jre-headless``."""


def find_elasticmq() -> Path | None:
    """The folder of its jars; ``None`` if it, or Java, is not installed."""
    if shutil.which("java") is None:
        return None
    folder = library()
    return folder if any(folder.glob(f"elasticmq-server_*-{RELEASE}.jar")) else None


def version() -> str | None:
    """Such as ``ElasticMQ 1.7.1``; ``None`` if it is not installed."""
    return None if find_elasticmq() is None else f"ElasticMQ {RELEASE}"


def elasticmq_server(datadir: Path, port: int, *, write_delay: bool = False) -> ProcessServer:
    """Make a broker of *datadir* that will listen on *port*. It is not started yet.

    Args:
        write_delay: Leave H2 its default of writing up to half a second later: what was answered in that time is lost
            when the process is killed.

    Raises:
        ServerError: it is not installed.
    """
    jars = find_elasticmq()
    if jars is None:
        raise ServerError("ElasticMQ is not installed: mqlayer brokers install elasticmq")
    datadir = datadir.resolve()
    temporary = datadir / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    configuration = datadir / "elasticmq.conf"
    configuration.write_text(_configuration(datadir, port, write_delay))
    return ProcessServer(
        ["java", *_SMALL, f"-Djava.io.tmpdir={temporary}", f"-Dconfig.file={configuration}", "-cp", f"{jars}/*", _MAIN],
        log=datadir / "server.log",
        cwd=datadir,
        probe=lambda: probe(port),
        port=port,
        ready_timeout=_READY_TIMEOUT,
    )


def probe(port: int) -> None:
    """One round trip through a queue of its own: made, sent to, received from, deleted. Raises whatever went wrong."""
    body = f"mqlayer-probe-{uuid.uuid4().hex}"
    url = _ask(port, "CreateQueue", QueueName=body)["QueueUrl"]
    _ask(port, "SendMessage", QueueUrl=url, MessageBody=body)
    got = _ask(port, "ReceiveMessage", QueueUrl=url, WaitTimeSeconds=1).get("Messages", [])
    if [message["Body"] for message in got] != [body]:
        raise ServerError("the broker confirmed a message and does not have it")
    _ask(port, "DeleteQueue", QueueUrl=url)


def _ask(port: int, action: str, **fields: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://{LOOPBACK}:{port}/",
        data=json.dumps(fields).encode(),
        headers={"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"AmazonSQS.{action}"},
    )
    with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT) as response:
        answer: dict[str, Any] = json.loads(response.read() or b"{}")
        return answer


def _configuration(datadir: Path, port: int, write_delay: bool) -> str:
    store = f"jdbc:h2:{datadir / 'h2'}" + ("" if write_delay else ";WRITE_DELAY=0")
    return f"""\
include classpath("application.conf")
node-address {{ protocol = http, host = "{LOOPBACK}", port = {port}, context-path = "" }}
rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = "{LOOPBACK}", sqs-limits = strict }}
rest-stats {{ enabled = false }}
queues-storage {{ enabled = false }}
messages-storage {{
  enabled = true
  driver-class = "org.h2.Driver"
  uri = "{store}"
  username = ""
  password = ""
  prune-data-on-init = false
}}
"""
