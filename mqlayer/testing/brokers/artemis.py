"""Apache ActiveMQ Artemis as a child process: from Maven Central, without ``artemis create``, and killable."""

import os
from pathlib import Path
from xml.sax.saxutils import escape

from mqlayer.testing.brokers.java import cache_folder, environment, find_java, java_command
from mqlayer.testing.brokers.stomp_probe import probe_stomp
from mqlayer.testing.processes import ProcessServer, ServerError

__all__ = ["ARTIFACT", "RELEASE", "artemis_server", "find_artemis", "install_commands", "probe", "version"]

RELEASE = "2.56.0"
ARTIFACT = f"org.apache.activemq:apache-artemis:{RELEASE}:tar.gz:bin"

_BROKER = """<configuration xmlns="urn:activemq"><core xmlns="urn:activemq:core">
 <name>mqlayer</name>
 <persistence-enabled>true</persistence-enabled>
 <security-enabled>false</security-enabled>
 <journal-type>NIO</journal-type>
 <journal-directory>{data}/journal</journal-directory>
 <bindings-directory>{data}/bindings</bindings-directory>
 <paging-directory>{data}/paging</paging-directory>
 <large-messages-directory>{data}/large</large-messages-directory>
 <journal-file-size>1M</journal-file-size><journal-min-files>2</journal-min-files>
 <journal-datasync>true</journal-datasync>
 <journal-buffer-timeout>500000</journal-buffer-timeout>
 <max-disk-usage>100</max-disk-usage><disk-scan-period>600000</disk-scan-period>
 <message-expiry-scan-period>500</message-expiry-scan-period>
 <global-max-size>128M</global-max-size>
 <acceptors><acceptor name="stomp">tcp://127.0.0.1:{port}?protocols=STOMP</acceptor></acceptors>
 <address-settings><address-setting match="#">
  <dead-letter-address>DLQ</dead-letter-address><expiry-address>EXPIRED</expiry-address>
  <auto-create-queues>true</auto-create-queues><auto-create-addresses>true</auto-create-addresses>
  <auto-delete-queues>false</auto-delete-queues><auto-delete-addresses>false</auto-delete-addresses>
 </address-setting></address-settings>
</core></configuration>
"""
_BOOTSTRAP = """<broker xmlns="http://activemq.apache.org/schema">
 <security-manager class-name="org.apache.activemq.artemis.spi.core.security.ActiveMQBasicSecurityManager">
  <property key="bootstrapUser" value="mqlayer"/><property key="bootstrapPassword" value="mqlayer"/>
  <property key="bootstrapRole" value="amq"/>
 </security-manager>
 <server configuration="file:{etc}/broker.xml"/>
</broker>
"""
_MANAGEMENT = '<management-context xmlns="http://activemq.apache.org/schema"/>\n'
_LOGGING = """rootLogger.level = WARN
rootLogger.appenderRef.c.ref = c
appender.c.type = Console
appender.c.name = c
appender.c.layout.type = PatternLayout
appender.c.layout.pattern = %d %-5p %m%n
"""


def find_artemis() -> Path | None:
    """The unpacked archive: ``ARTEMIS_HOME``, or the one of this user's cache. ``None`` without it, or Java."""
    if find_java() is None:
        return None
    home = os.environ.get("ARTEMIS_HOME")
    candidates = [*([Path(home)] if home else []), cache_folder() / f"apache-artemis-{RELEASE}"]
    return next((folder for folder in candidates if (folder / "lib" / "artemis-boot.jar").exists()), None)


def version() -> str | None:
    """Such as ``Artemis 2.56.0``; ``None`` if it is not installed."""
    home = find_artemis()
    return None if home is None else f"Artemis {home.name.removeprefix('apache-artemis-')}"


def install_commands() -> tuple[tuple[str, ...], ...]:
    """Maven fetches the archive and checks its sums; it is unpacked into this user's cache."""
    folder = cache_folder()
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
    archive = folder / f"apache-artemis-{RELEASE}-bin.tar.gz"
    return (
        ("mvn", "--quiet", "--batch-mode", plugin, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={folder}"),
        ("tar", "--extract", "--gzip", "--file", str(archive), "--directory", str(folder)),
    )


def artemis_server(datadir: Path, port: int) -> ProcessServer:
    """Make a broker of *datadir* that will speak STOMP on *port*. It is not started yet.

    The same folder may be given again, with the same or another port. One broker at a time.

    Raises:
        ServerError: Artemis, or Java, is not installed.
    """
    home = find_artemis()
    if home is None:
        raise ServerError("Artemis is not installed: mqlayer brokers install artemis, or set ARTEMIS_HOME")
    datadir = datadir.resolve()
    etc, data = datadir / "etc", datadir / "data"
    for folder in (etc, data):
        folder.mkdir(parents=True, exist_ok=True)
    (etc / "broker.xml").write_text(_BROKER.format(data=escape(str(data)), port=port))
    (etc / "bootstrap.xml").write_text(_BOOTSTRAP.format(etc=escape(str(etc))))
    (etc / "management.xml").write_text(_MANAGEMENT)
    (etc / "log4j2.properties").write_text(_LOGGING)
    folders = {"artemis.home": home, "artemis.instance": datadir, "artemis.instance.etc": etc, "data.dir": data}
    variables = {"ARTEMIS_HOME": home, "ARTEMIS_INSTANCE": datadir, "ARTEMIS_INSTANCE_ETC": etc}
    return ProcessServer(
        java_command(
            datadir,
            *(f"-D{name}={path}" for name, path in folders.items()),
            f"-Dlog4j2.configurationFile=file:{etc / 'log4j2.properties'}",
            "-cp",
            str(home / "lib" / "artemis-boot.jar"),
            "org.apache.activemq.artemis.boot.Artemis",
            "run",
            "--",
            f"xml:{etc / 'bootstrap.xml'}",
        ),
        log=datadir / "server.log",
        env=environment(datadir) | {name: str(path) for name, path in variables.items()},
        cwd=datadir,
        probe=lambda: probe(port),
        port=port,
    )


def probe(port: int) -> None:
    """One round trip through a queue of its own. Raises whatever went wrong."""
    probe_stomp(port, "mqlayer.probe", headers={"destination-type": "ANYCAST", "subscription-type": "ANYCAST"})
