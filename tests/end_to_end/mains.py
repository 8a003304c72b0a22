"""Calls bin/train.py's main for one list of arguments after another in one process: `python mains.py ARGUMENTS.json`.

Importing torch and deepspeed costs five seconds, a mistake none. Writes `<ARGUMENTS>.out`: per list the exit code and
what went to stderr and stdout, tracebacks of unexpected errors included.
"""

import contextlib
import io
import json
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def call(arguments: list[str]) -> dict:
    sys.argv = [str(ROOT / "bin" / "train.py"), *arguments]
    stderr, stdout, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    return {"code": code, "stderr": stderr.getvalue(), "stdout": stdout.getvalue()}


if __name__ == "__main__":
    listing = Path(sys.argv[1])
    listing.with_suffix(".out").write_text(json.dumps([call(a) for a in json.loads(listing.read_text())]))
