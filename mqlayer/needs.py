"""What a program asks of a backend, and which of it a backend lacks."""

from dataclasses import dataclass, fields

from mqlayer.driver import Capabilities, Support

__all__ = ["Needs", "unmet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What ``connect(needs=…)`` refuses to go without. Emulated counts as there.

    Attributes:
        delay: The longest delay that will be asked for, in seconds.
        body_bytes: The largest body that will be sent.
    """

    durable: bool = False
    ordered: bool = False
    confirms_acks: bool = False
    timed_lease: bool = False
    backpressure: bool = False
    checks_queues: bool = False
    compares_queues: bool = False
    delay: float = 0.0
    priority: bool = False
    ttl: bool = False
    group_id: bool = False
    dedup_id: bool = False
    dead_letter: bool = False
    delivery_count: bool = False
    topics: bool = False
    peek: bool = False
    purge: bool = False
    stats: bool = False
    nack: bool = False
    release: bool = False
    forward: bool = False
    body_bytes: int = 0


def unmet(needs: Needs, capabilities: Capabilities) -> list[str]:
    """The needs that *capabilities* do not meet, each in a few words."""
    missing: list[str] = []
    for field in fields(needs):
        wanted = getattr(needs, field.name)
        if not wanted:
            continue
        if field.name == "body_bytes":
            limit = capabilities.body_max_bytes
            if limit is not None and wanted > limit:
                missing.append(f"bodies of {wanted} bytes (it takes {limit})")
            continue
        has = getattr(capabilities, field.name)
        if has is False or has is Support.UNSUPPORTED:
            missing.append(field.name)
        elif field.name == "delay" and capabilities.delay_max is not None and wanted > capabilities.delay_max:
            missing.append(f"a delay of {wanted:g} s (it has {capabilities.delay_max:g})")
    return missing
