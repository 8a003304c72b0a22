"""Runs programs for many lists of arguments in one process: `python mains.py ARGUMENTS.json`.

One process saves time, since importing torch and deepspeed takes five seconds, and a call that
fails on a user error almost none. A list may begin with the program's path, `bin/...`; otherwise
the program is bin/train.py. For each list, exit code, stderr and stdout are written to
`<ARGUMENTS>.out`, with the tracebacks of unexpected errors. A call that takes longer than LIMIT_S
is ended by an exception.
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
    """Raised in a call that takes longer than LIMIT_S."""


def stop(*_) -> None:
    raise Hang(f"not ended after {LIMIT_S} s")


def call(arguments: list[str]) -> dict:
    from tiekd.distributed import entrypoint

    # A program would end its process: raise SystemExit instead, since other calls follow.
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
