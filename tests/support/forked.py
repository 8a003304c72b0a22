"""Runs programs of the checkout that it lies in, each in a process of its own that has torch in it already.

    python forked.py SECONDS

Reads one request a line, {words: [program, argument, ...], environment: {...}, ranks: N, out: PATH}, runs it from the
checkout's folder with its output in PATH, and answers with a line: the exit codes of its ranks. Importing torch and
deepspeed costs five seconds, a fork some milliseconds. `ranks` above 1 are joined as a launcher would: the same
program with RANK and its kin set; without the launcher's ten seconds. What takes longer than SECONDS is ended.
"""

import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]


def main() -> None:
    limit_s = int(sys.argv[1])
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever an import says is no answer
    import deepspeed  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    from tiekd import files  # noqa: F401
    from tiekd.evaluation import report  # noqa: F401
    from tiekd.tools import dry_run, micro_batch  # noqa: F401
    from tiekd.training import build, run  # noqa: F401
    from tiekd.visualization import panel  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for environment in ranks(request["ranks"]):
            child = os.fork()
            if child == 0:
                signal.alarm(limit_s)
                become(request["words"], environment | request["environment"], request["out"])
                return
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.write(answers, (json.dumps(codes) + "\n").encode())


def ranks(number: int) -> list[dict[str, str]]:
    """What tells each process who it is; nothing for a process alone."""
    if number == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "LOCAL_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(port)
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def become(words: list[str], environment: dict[str, str], out: str) -> None:
    """Is that program from here on; its end is this process's."""
    output = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(descriptor, number)
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
