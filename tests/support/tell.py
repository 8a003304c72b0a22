"""Prints, as one JSON line, how a rank was started, and fails on rank 1: `deepspeed tell.py`."""

import json
import os
import sys
import time

import psutil


def main() -> None:
    ancestors = psutil.Process().parents()[:2]
    told = {
        "argv": sys.argv,
        "command lines": [psutil.Process().cmdline(), *(each.cmdline() for each in ancestors)],
        "environment": dict(os.environ),
        "path": sys.path[:3],
        "is in the runner's group": os.getpgid(0) == os.getsid(0) == ancestors[1].pid,
    }
    os.write(1, f"{json.dumps(told)}\n".encode())
    if os.environ["RANK"] == "1":
        time.sleep(3)  # the other rank ends before the launcher ends it
        sys.exit(3)


if __name__ == "__main__":
    main()
