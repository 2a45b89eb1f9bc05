"""The entry point of the ``mqlayer`` command. Imports nothing heavy itself."""

import sys

__all__ = ["main"]

_NEEDED = ("typer", "rich", "click")


def main() -> int:
    """Run the command with the process's arguments. Returns the exit code; ``mqlayer.cli.failures`` lists them."""
    try:
        from mqlayer.cli.app import run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write(f'mqlayer: the command needs {exc.name}: pip install "mqlayer[cli]"\n')
        return 2
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
