"""I1: whole processes that import something and end. Wall time, memory at the end, and what was imported along the way."""

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.meter import Result
from benchmarks.model import Job, WrongResultError

CLIENTS = ("pika", "amqp", "kombu", "sqlite3", "boto3", "stomp", "zmq", "redis", "psycopg")
# Read before anything is imported for the reading. Not getrusage: its peak includes the parent's memory at the fork.
REPORT = (
    "; import sys; names = list(sys.modules); status = open('/proc/self/status').read()"
    "; import json; print(json.dumps([names, int(status.split('VmRSS:')[1].split()[0])]))"
)


def _measure(job: Job, statement: str) -> tuple[Result, list[str]]:
    """*count* fresh processes, one after another; medians."""
    command = [sys.executable, "-c", statement]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(command, check=True, env=environment)  # the byte code is written
    seconds, cpu_seconds = [], []
    for _ in range(job.count):
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, check=True, env=environment)
        seconds.append(time.perf_counter() - start)
        after = os.times()
        cpu_seconds.append(after[2] + after[3] - before[2] - before[3])
    asked = subprocess.run([sys.executable, "-c", statement + REPORT], check=True, capture_output=True, env=environment)
    names, kib = json.loads(asked.stdout)
    figures = {
        "ms": statistics.median(seconds) * 1e3,
        "cpu_ms": max(statistics.median(cpu_seconds) * 1e3, 0.001),
        "mib": kib / 1024,
        "modules": float(len(names)),
    }
    return Result(job.count, figures), names


def bare(job: Job) -> Result:
    """The interpreter alone."""
    return _measure(job, "pass")[0]


def mqlayer_import(job: Job) -> Result:
    """``import mqlayer``; it may not import any client library."""
    result, names = _measure(job, "import mqlayer")
    found = sorted({name.partition(".")[0] for name in names} & set(CLIENTS))
    if found:
        raise WrongResultError(f"import mqlayer imports {', '.join(found)}")
    return result


def mqlayer_connect_memory(job: Job) -> Result:
    """``mqlayer.connect("memory://")``: what a first test pays."""
    return _measure(job, "import mqlayer; mqlayer.connect('memory://').close()")[0]


def mqlayer_rabbitmq(job: Job) -> Result:
    """``import mqlayer`` and the RabbitMQ backend, pika included: what a program has loaded when it has connected."""
    return _measure(job, "import mqlayer, mqlayer.backends.rabbitmq")[0]


def kombu_connection(job: Job) -> Result:
    """``from kombu import Connection``, which loads kombu's lazy package."""
    return _measure(job, "from kombu import Connection")[0]
