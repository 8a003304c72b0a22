"""Calls programs' mains for lists of arguments in one process: `python mains.py ARGUMENTS.json`.

Importing torch and deepspeed costs five seconds, a mistake none. A list that begins with `bin/...`
names its program; the others are bin/train.py's. Writes `<ARGUMENTS>.out`: per list the exit code
and what went to stderr and stdout, tracebacks of unexpected errors included; a call that takes
longer than LIMIT_S ends with one.
"""

import contextlib
import io
import json
import runpy
import signal
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
LIMIT_S = 600


class Hang(BaseException):
    """A call that took too long."""


def stop(*_) -> None:
    raise Hang(f"not ended after {LIMIT_S} s")


def call(arguments: list[str]) -> dict:
    from tiekd.distributed import entrypoint

    # A program ends its process; here the next one follows.
    entrypoint.program = lambda main, **_: sys.exit(entrypoint.run(main))
    program, *rest = arguments if arguments[0].startswith("bin/") else ["bin/train.py", *arguments]
    sys.argv = [str(ROOT / program), *rest]
    stderr, stdout, code = io.StringIO(), io.StringIO(), None
    signal.alarm(LIMIT_S)
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        except (Exception, Hang):
            traceback.print_exc()
    signal.alarm(0)
    return {"code": code, "stderr": stderr.getvalue(), "stdout": stdout.getvalue()}


def main() -> None:
    listing = Path(sys.argv[1])
    listing.with_suffix(".out").write_text(
        json.dumps([call(a) for a in json.loads(listing.read_text())])
    )


if __name__ == "__main__":
    from tiekd.distributed import entrypoint

    signal.signal(signal.SIGALRM, stop)
    entrypoint.program(main)
