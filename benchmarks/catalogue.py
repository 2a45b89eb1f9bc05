"""Every benchmark, its variants and its goals. The goals' names and numbers are the project's; see README.md."""

from dataclasses import replace

from benchmarks.model import Benchmark, Bound, Case, Goal, Kind, Variant

__all__ = ["BENCHMARKS", "quick"]

MIB_FIGURES = {"ms": "ms, whole process", "cpu_ms": "CPU ms", "mib": "MiB resident", "modules": "modules"}
MICROSECONDS = {"us": "µs", "rate": "a second"}
DEPTH_SMALL, DEPTH_LARGE, DEPTH_QUICK = 1_000, 1_000_000, 20_000


# --- R1, R4: publish ------------------------------------------------------------------------------------------------------

PUBLISHERS = (
    Variant(
        name="kombu", title="kombu, `confirm_publish`, one by one", run="rabbit_publish:kombu_confirm", count=2_000
    ),
    Variant(name="mqlayer", title="mqlayer, `send_many`", run="rabbit_publish:mqlayer_send_many", count=20_000),
    Variant(
        name="mqlayer-submit", title="mqlayer, `submit` + `flush`", run="rabbit_publish:mqlayer_submit", count=20_000
    ),
    Variant(
        name="pika-select", title="pika SelectConnection, window 1024", run="rabbit_publish:pika_select", count=20_000
    ),
    Variant(
        name="pika-blocking", title="pika Blocking, `confirm_delivery`", run="rabbit_publish:pika_blocking", count=2_000
    ),
)


def _publishing(body_bytes: int, queue_type: str) -> Case:
    size = f"{body_bytes} B" if body_bytes < 1024 else f"{body_bytes // 1024} KiB"
    return Case(
        name=f"{size}, {queue_type} queue",
        place="rabbitmq",
        settings={"body_bytes": body_bytes, "queue_type": queue_type},
        variants=PUBLISHERS,
        goals=(
            _ratio("R1", "`send_many` ≥ 7× kombu", "mqlayer", "kombu", 7.0),
            _ratio("R1", "`submit` ≥ 7× kombu", "mqlayer-submit", "kombu", 7.0),
            _ratio("R1", "`send_many` ≥ 8× kombu", "mqlayer", "kombu", 8.0, kind=Kind.LATER),
            _most("R4", "`send_many`: ≤ 6 µs of client CPU", "mqlayer", "cpu_us", 6.0, kind=Kind.LATER),
            _most("R4", "`submit`: ≤ 10 µs of client CPU", "mqlayer-submit", "cpu_us", 10.0, kind=Kind.LATER),
        ),
    )


def _ratio(name: str, text: str, subject: str, reference: str, limit: float, *, kind: Kind = Kind.NOW) -> Goal:
    return Goal(
        name=name,
        text=text,
        subject=subject,
        reference=reference,
        figure="rate",
        bound=Bound.AT_LEAST,
        limit=limit,
        kind=kind,
    )


def _most(
    name: str,
    text: str,
    subject: str,
    figure: str,
    limit: float,
    *,
    reference: str | None = None,
    subtract: str | None = None,
    kind: Kind = Kind.NOW,
) -> Goal:
    return Goal(
        name=name,
        text=text,
        subject=subject,
        figure=figure,
        bound=Bound.AT_MOST,
        limit=limit,
        reference=reference,
        subtract=subtract,
        kind=kind,
    )


R1 = Benchmark(
    name="R1",
    title="RabbitMQ: publish, every message confirmed (R1, R4)",
    cases=(_publishing(1024, "quorum"), _publishing(256, "quorum"), _publishing(1024, "classic")),
    notes=(
        "Everybody publishes persistent, mandatory messages with a content type, an id and one header. mqlayer adds the "
        "time of sending, as a property and exactly, in a header. The queue exists beforehand, the connection stands, and "
        "a hundred messages are through before the clock starts."
    ),
)

R5 = Benchmark(
    name="R5",
    title="RabbitMQ: one waiting send at a time (R5)",
    cases=(
        Case(
            name="1 KiB, quorum queue",
            place="rabbitmq",
            settings={"body_bytes": 1024, "queue_type": "quorum"},
            variants=(
                PUBLISHERS[0],
                Variant(name="mqlayer", title="mqlayer, `send`", run="rabbit_publish:mqlayer_send", count=2_000),
                PUBLISHERS[4],
            ),
            goals=(_ratio("R5", "`send` ≥ 0.9× kombu", "mqlayer", "kombu", 0.9),),
        ),
    ),
    notes="A round trip and a sync on the broker's disk for each message: nobody can be much faster than anybody else.",
)


# --- R6: consume ----------------------------------------------------------------------------------------------------------

CONSUMERS = (
    Variant(name="kombu", title="kombu Consumer, `message.ack()`", run="rabbit_consume:kombu_consumer", count=20_000),
    Variant(
        name="mqlayer", title="mqlayer, `receive_many` + `ack`", run="rabbit_consume:mqlayer_receive_many", count=20_000
    ),
    Variant(name="mqlayer-with", title="mqlayer, `with delivery`", run="rabbit_consume:mqlayer_with", count=20_000),
    Variant(
        name="pika-blocking",
        title="pika Blocking, `consume` + `basic_ack`",
        run="rabbit_consume:pika_blocking",
        count=20_000,
    ),
)


def _consuming(prefetch: int, queue_type: str) -> Case:
    later = (_ratio("R6", "`receive_many` ≥ 3× kombu", "mqlayer", "kombu", 3.0, kind=Kind.LATER),)
    return Case(
        name=f"1 KiB, prefetch {prefetch}, {queue_type} queue",
        place="rabbitmq",
        settings={"body_bytes": 1024, "queue_type": queue_type, "prefetch": prefetch, "filled": True},
        variants=CONSUMERS,
        goals=(
            _ratio("R6", "`receive_many` ≥ 2.5× kombu", "mqlayer", "kombu", 2.5),
            _ratio("R6", "`with delivery` ≥ 2.5× kombu", "mqlayer-with", "kombu", 2.5),
            *(later if prefetch == 1000 else ()),
        ),
    )


R6 = Benchmark(
    name="R6",
    title="RabbitMQ: consume and ack (R6)",
    cases=(_consuming(1000, "quorum"), _consuming(100, "quorum"), _consuming(1000, "classic")),
    notes=(
        "The queue is filled beforehand by a plain pika client. The clock runs from the first delivery in the program's "
        "hands to the end of the consumer, when every ack is written. Afterwards the queue is empty."
    ),
)


# --- M1: memory -----------------------------------------------------------------------------------------------------------

M1 = Benchmark(
    name="M1",
    title="Memory: put, get and ack, one by one (M1)",
    cases=(
        Case(
            name="256 B",
            settings={"body_bytes": 256},
            variants=(
                Variant(
                    name="kombu", title="kombu memory, Producer and Consumer", run="memory:kombu_memory", count=20_000
                ),
                Variant(name="mqlayer", title="mqlayer `memory://`", run="memory:mqlayer_memory", count=100_000),
                Variant(
                    name="kombu-simple", title="kombu memory, SimpleQueue", run="memory:kombu_simple", count=20_000
                ),
            ),
            goals=(_ratio("M1", "put + get + ack ≥ 8× kombu memory", "mqlayer", "kombu", 8.0),),
            figures={"rate": "messages/s", "cpu_us": "CPU µs/msg"},
        ),
    ),
    notes=(
        "With content type, id and a header. Our memory broker also keeps leases, counts and dead letters; kombu's loses "
        "what is not acked."
    ),
)


# --- Q1, Q2: SQLite -------------------------------------------------------------------------------------------------------

Q1 = Benchmark(
    name="Q1",
    title="SQLite: put, get and ack (Q1)",
    cases=(
        Case(
            name="put, 256 B",
            place="sqlite",
            settings={"body_bytes": 256, "left": "all"},
            variants=(
                Variant(
                    name="persist-queue",
                    title="persist-queue SQLiteAckQueue, `put`",
                    run="sqlite:persist_put",
                    count=3_000,
                ),
                Variant(
                    name="mqlayer-100",
                    title="mqlayer, `send_many`, 100 a call",
                    run="sqlite:mqlayer_put_many",
                    count=50_000,
                ),
                Variant(name="mqlayer-1", title="mqlayer, `send`", run="sqlite:mqlayer_put_one", count=3_000),
            ),
            goals=(
                _ratio("Q1", "put in batches of 100 ≥ 15× persist-queue", "mqlayer-100", "persist-queue", 15.0),
                _ratio("Q1", "put one by one ≥ 0.9× persist-queue", "mqlayer-1", "persist-queue", 0.9),
            ),
        ),
        Case(
            name="get + ack, 256 B",
            place="sqlite",
            settings={"body_bytes": 256, "left": "none"},
            variants=(
                Variant(
                    name="persist-queue",
                    title="persist-queue SQLiteAckQueue, `get` + `ack`",
                    run="sqlite:persist_get",
                    count=3_000,
                ),
                Variant(
                    name="mqlayer-100",
                    title="mqlayer, `receive_many(100)`, `ack_many`",
                    run="sqlite:mqlayer_get_many",
                    count=50_000,
                ),
                Variant(name="mqlayer-1", title="mqlayer, `with delivery`", run="sqlite:mqlayer_get_one", count=3_000),
            ),
            goals=(
                _ratio("Q1", "get + ack in batches of 100 ≥ 15× persist-queue", "mqlayer-100", "persist-queue", 15.0),
                _ratio("Q1", "get + ack one by one ≥ 1.5× persist-queue", "mqlayer-1", "persist-queue", 1.5),
            ),
        ),
    ),
    notes=(
        "Both write ahead and sync each commit; every connection is asked. persist-queue has no batches: it refuses "
        "`auto_commit=False` for this queue."
    ),
)


def _depths(large: int) -> Case:
    def at(depth: int, name: str, count: int) -> Variant:
        return Variant(
            name=name,
            title=f"mqlayer, {depth} ready",
            run="sqlite:mqlayer_claim",
            count=count,
            settings={"depth": depth},
            exact=True,
        )

    return Case(
        name="`receive` + `ack` of 1000, 256 B",
        place="sqlite",
        settings={"body_bytes": 256, "left": "depth", "keep": True},
        variants=(at(DEPTH_SMALL, "small", 4_000), at(large, "large", 4_000)),
        goals=(_ratio("Q2", f"rate at {large} ready ≥ 0.75× that at {DEPTH_SMALL}", "large", "small", 0.75),),
    )


Q2 = Benchmark(
    name="Q2",
    title="SQLite: the cost of a deep queue (Q2)",
    cases=(_depths(DEPTH_LARGE),),
    notes="A thousand messages are taken and acked (timed), then a thousand put back (not timed), four times a round.",
)


# --- E1, I1 ---------------------------------------------------------------------------------------------------------------


def _json(name: str, *, null: bool) -> Case:
    return Case(
        name=name,
        settings={"null": null},
        variants=(
            Variant(name="json", title="standard library", run="codec:standard_json", count=50_000),
            Variant(name="mqlayer", title="mqlayer with msgspec", run="codec:mqlayer_json", count=200_000),
        ),
        goals=(_ratio("E1", "JSON ≥ 5× the standard library's", "mqlayer", "json", 5.0),),
        figures=MICROSECONDS,
    )


E1 = Benchmark(
    name="E1",
    title="What surrounds the body (E1)",
    cases=(
        Case(
            name="id, header and properties, both ways",
            settings={"body_bytes": 1024},
            variants=(
                Variant(
                    name="envelope",
                    title="mqlayer, message → headers → message",
                    run="codec:mqlayer_envelope",
                    count=200_000,
                ),
                Variant(
                    name="amqp",
                    title="the same through the AMQP properties",
                    run="codec:mqlayer_amqp_envelope",
                    count=50_000,
                ),
            ),
            goals=(_most("E1", "≤ 4 µs around the body, both ways", "envelope", "us", 4.0),),
            figures=MICROSECONDS,
        ),
        _json("JSON of 330 B with a null, both ways", null=True),
        _json("JSON of 320 B without a null, both ways", null=False),
    ),
)

I1 = Benchmark(
    name="I1",
    title="Import (I1)",
    cases=(
        Case(
            name="fresh processes",
            variants=(
                Variant(name="bare", title="bare Python", run="imports:bare", count=9, exact=True),
                Variant(name="mqlayer", title="`import mqlayer`", run="imports:mqlayer_import", count=9, exact=True),
                Variant(
                    name="kombu",
                    title="`from kombu import Connection`",
                    run="imports:kombu_connection",
                    count=9,
                    exact=True,
                ),
                Variant(
                    name="rabbitmq",
                    title="`import mqlayer` and its RabbitMQ backend",
                    run="imports:mqlayer_rabbitmq",
                    count=9,
                    exact=True,
                ),
                Variant(
                    name="memory",
                    title='`mqlayer.connect("memory://")`',
                    run="imports:mqlayer_connect_memory",
                    count=9,
                    exact=True,
                ),
            ),
            goals=(
                _most("I1", "`import mqlayer` ≤ 30 ms beyond bare Python", "mqlayer", "ms", 30.0, subtract="bare"),
                _most("I1", "`import mqlayer` ≤ 4 MiB beyond bare Python", "mqlayer", "mib", 4.0, subtract="bare"),
                _most(
                    "I1", "`import mqlayer` ≤ 0.75× kombu's", "mqlayer", "ms", 0.75, reference="kombu", subtract="bare"
                ),
                _most("I1", "RabbitMQ backend ready ≤ 60 ms", "rabbitmq", "ms", 60.0, subtract="bare", kind=Kind.LATER),
                _most(
                    "I1",
                    "RabbitMQ backend ready ≤ 0.75× kombu's",
                    "rabbitmq",
                    "ms",
                    0.75,
                    reference="kombu",
                    subtract="bare",
                    kind=Kind.LATER,
                ),
            ),
            figures=MIB_FIGURES,
        ),
    ),
    notes="Medians of nine fresh processes in each round, from start to end; `import mqlayer` loads no client library.",
)

BENCHMARKS = (R1, R5, R6, M1, Q1, Q2, E1, I1)


def quick(benchmark: Benchmark) -> Benchmark:
    """The same with a smaller deep queue, which is most of Q2's time."""
    return replace(benchmark, cases=(_depths(DEPTH_QUICK),)) if benchmark.name == "Q2" else benchmark
