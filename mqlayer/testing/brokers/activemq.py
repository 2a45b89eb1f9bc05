"""ActiveMQ Classic as a child process: alone in its folder, as any user, and killable."""

import os
import re
from pathlib import Path
from xml.sax.saxutils import quoteattr

from mqlayer.testing.brokers.java import environment, find_java, java_command
from mqlayer.testing.brokers.stomp_probe import probe_stomp
from mqlayer.testing.certificates import Certificates
from mqlayer.testing.processes import ProcessServer, ServerError

__all__ = ["activemq_server", "find_activemq", "probe", "version"]

# The name is in the path of the scheduler's store, so that it stays the same over restarts and ports.
_CONFIGURATION = """<beans xmlns="http://www.springframework.org/schema/beans"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://www.springframework.org/schema/beans http://www.springframework.org/schema/beans/spring-beans.xsd
 http://activemq.apache.org/schema/core http://activemq.apache.org/schema/core/activemq-core.xsd">
 <broker xmlns="http://activemq.apache.org/schema/core" brokerName="mqlayer" dataDirectory={data}
         useJmx="false" schedulerSupport={scheduler} useShutdownHook="true" start="true">
  <destinationPolicy><policyMap><policyEntries>
   <policyEntry queue="&gt;" prioritizedMessages="true" expireMessagesPeriod="1000">
    <deadLetterStrategy><individualDeadLetterStrategy queuePrefix="DLQ." useQueueForQueueMessages="true"/></deadLetterStrategy>
   </policyEntry>
  </policyEntries></policyMap></destinationPolicy>
  <persistenceAdapter>
   <kahaDB directory={store} journalDiskSyncStrategy="always" checkpointInterval="1000" journalMaxFileLength="8mb"/>
  </persistenceAdapter>
  {more}
  <systemUsage><systemUsage>
   <memoryUsage><memoryUsage limit="128 mb"/></memoryUsage>
   <storeUsage><storeUsage limit="2 gb"/></storeUsage>
   <tempUsage><tempUsage limit="128 mb"/></tempUsage>
  </systemUsage></systemUsage>
  <transportConnectors>
   <transportConnector name="stomp" uri="stomp://127.0.0.1:{port}"/>
   {tls}
  </transportConnectors>
 </broker>
</beans>
"""


def find_activemq() -> Path | None:
    """The folder of ``bin/activemq.jar``: ``ACTIVEMQ_HOME``, or where Debian puts it. ``None`` without it, or Java."""
    if find_java() is None:
        return None
    home = os.environ.get("ACTIVEMQ_HOME")
    candidates = [*([Path(home)] if home else []), Path("/usr/share/activemq")]
    return next((folder for folder in candidates if (folder / "bin" / "activemq.jar").exists()), None)


def version() -> str | None:
    """Such as ``ActiveMQ 5.17.2``; ``None`` if it is not installed."""
    home = find_activemq()
    if home is None:
        return None
    libraries = (home / "lib" / "activemq-broker.jar").resolve().parent  # Debian's are links, and lose the version
    for path in sorted([*(home / "lib").glob("activemq-broker-*.jar"), *libraries.glob("activemq-broker-*.jar")]):
        found = re.search(r"activemq-broker-(\d[\d.]*)\.jar", path.name)
        if found is not None:
            return f"ActiveMQ {found[1]}"
    return "ActiveMQ of unknown version"


def activemq_server(
    datadir: Path,
    port: int,
    *,
    scheduler: bool = True,
    more: str = "",
    tls: tuple[int, Certificates] | None = None,
    login: str = "",
) -> ProcessServer:
    """Make a broker of *datadir* that will speak STOMP on *port*. It is not started yet.

    The same folder may be given again, with the same or another port. One broker at a time.

    Args:
        scheduler: It can delay messages.
        more: Elements of its configuration, such as plugins.
        tls: A second port, and its certificates, for ``stomp+ssl``.
        login: A user, whose password is the same, where *more* asks for one.

    Raises:
        ServerError: ActiveMQ, or Java, is not installed.
    """
    home = find_activemq()
    if home is None:
        raise ServerError("ActiveMQ is not installed: apt-get install activemq, or set ACTIVEMQ_HOME")
    datadir = datadir.resolve()
    datadir.mkdir(parents=True, exist_ok=True)
    configuration = datadir / "activemq.xml"
    ssl_options: list[str] = []
    connector = ""
    if tls is not None:
        tls_port, certificates = tls
        connector = f'<transportConnector name="tls" uri="stomp+ssl://127.0.0.1:{tls_port}"/>'
        store = certificates.pkcs12(datadir / "server.p12", "mqlayer")
        ssl_options = [
            f"-Djavax.net.ssl.keyStore={store}",
            "-Djavax.net.ssl.keyStorePassword=mqlayer",
            "-Djavax.net.ssl.keyStoreType=PKCS12",
        ]
    configuration.write_text(
        _CONFIGURATION.format(
            data=quoteattr(str(datadir / "data")),
            store=quoteattr(str(datadir / "data" / "kahadb")),
            scheduler=quoteattr(str(scheduler).lower()),
            port=port,
            more=more,
            tls=connector,
        )
    )
    folders = [f"-Dactivemq.{name}={path}" for name, path in (("home", home), ("base", datadir), ("conf", datadir))]
    return ProcessServer(
        java_command(
            datadir,
            *ssl_options,
            *folders,
            f"-Dactivemq.data={datadir / 'data'}",
            "-jar",
            str(home / "bin" / "activemq.jar"),
            "start",
            f"xbean:file:{configuration}",
        ),
        log=datadir / "server.log",
        env=environment(datadir),
        cwd=datadir,
        probe=lambda: probe(port, login),
        port=port,
    )


def probe(port: int, login: str = "") -> None:
    """One round trip through a queue of its own. Raises whatever went wrong."""
    probe_stomp(port, "/temp-queue/mqlayer-probe", login=login)
