"""``matrix``: stub until the runner is there."""


def matrix() -> None:
    """Stub."""
