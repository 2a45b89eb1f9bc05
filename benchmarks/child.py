"""Run one variant in this fresh process: ``python -m benchmarks.child MODULE:FUNCTION JOB-AS-JSON``. The result goes to stdout.

The last line is JSON: the count and the figures. A variant that meets an error, a nack or a returned message ends with a
traceback and another exit code than 0.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence

from benchmarks.meter import Result
from benchmarks.model import Job

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    name, job = arguments
    module, _, function = name.partition(":")
    run: Callable[[Job], Result] = getattr(importlib.import_module(f"benchmarks.variants.{module}"), function)
    result = run(Job(**json.loads(job)))
    sys.stdout.write("\n" + json.dumps({"count": result.count, "figures": result.figures}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
