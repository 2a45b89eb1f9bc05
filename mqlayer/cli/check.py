"""``check URL``: stub until the runner is there."""


def check(url: str) -> None:
    """Stub."""
