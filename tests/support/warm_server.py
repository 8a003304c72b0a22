"""Runs programs of a checkout, each in a forked process that has torch and DeepSpeed imported.

    python warm_server.py SOCKET

Importing torch and DeepSpeed takes five seconds, a fork milliseconds. The checkout is the one that
contains this file. A client (warm.py) connects to SOCKET once for each program and sends a JSON
object {words, cwd, environment, ranks, path} together with two descriptors, for stdout and stderr.
The server answers with a line that has the process id, and when the process has ended, a line with
its exit code. The server ends when its stdin is closed, i.e. with the process that started it.
"""

import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from pathlib import Path

import warm_launcher

ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES = 1 << 20
LEAVE_S = 30  # seconds from SIGTERM to SIGKILL for the ranks that remain after one has failed


def main() -> None:
    """Serves requests until stdin is closed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(sys.argv[1])
    listener.listen(64)
    clean_path = list(sys.path[1:])  # without this file's folder
    sys.path.insert(0, str(ROOT))
    import_everything()
    warm_launcher.fork_from_now_on()
    gc.freeze()  # else each program's collections would visit, and so copy, what they share
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as ready:
        for file in (listener, sys.stdin, woken):
            ready.register(file, selectors.EVENT_READ)
        while True:
            files = [key.fileobj for key, _ in ready.select()]
            if sys.stdin in files:
                return
            if woken in files:
                os.read(woken, 4096)
            report_ended(children)
            if listener in files:
                client = listener.accept()[0]
                request, descriptors = receive(client)
                process = os.fork()
                if process == 0:
                    os.setsid()  # before the client knows the process id and may kill the group
                    client.sendall(f"{os.getpid()}\n".encode())
                    for other in (listener, client, *children.values()):
                        other.close()
                    become(request, descriptors, clean_path)
                    return
                for descriptor in descriptors:
                    os.close(descriptor)
                children[process] = client


def import_everything() -> None:
    """Imports the modules that programs import, so that forked processes needn't."""
    before = dict(os.environ)
    import deepspeed

    warm_launcher.set_by_deepspeed |= dict(os.environ.items() - before.items())
    import torch._dynamo  # a process's first optimizer imports it, in as much time as torch itself
    import torch.utils.tensorboard  # noqa: F401

    from tiekd import files  # noqa: F401
    from tiekd.engine import patches
    from tiekd.evaluation import report  # noqa: F401
    from tiekd.inference.predict import prediction  # noqa: F401
    from tiekd.tools import dry_run, micro_batch  # noqa: F401
    from tiekd.training import build, run  # noqa: F401
    from tiekd.visualization import panel  # noqa: F401

    patches.import_muon_uncompiled()
    # DeepSpeed asks a compiler which of its operators could be built, once for a process.
    assert deepspeed.ops.__compatible_ops__


def receive(client: socket.socket) -> tuple[dict, list[int]]:
    """Returns a client's request, which ends with a newline, and its two descriptors."""
    data, descriptors, _, _ = socket.recv_fds(client, REQUEST_BYTES, 2)
    while not data.endswith(b"\n"):
        data += client.recv(REQUEST_BYTES)
    return json.loads(data), descriptors


def report_ended(children: dict[int, socket.socket]) -> None:
    """Sends the exit code of each process that has ended to its client."""
    for process, client in list(children.items()):
        ended, status = os.waitpid(process, os.WNOHANG)
        if not ended:
            continue
        del children[process]
        with contextlib.suppress(OSError):  # the client has closed the connection
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        client.close()


def become(request: dict, descriptors: list[int], clean_path: list[str]) -> None:
    """Runs the requested program in this forked process, and each program that replaces it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nothing, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["cwd"])
    command, environment = [sys.executable, *request["words"]], request["environment"]
    words, path, ranks = request["words"], request["path"], request["ranks"]
    while True:
        warm_launcher.begin(command, environment)
        if ranks > 1 and not is_rank(ranks):
            return
        try:
            run(words, [*path, *clean_path])
            return
        except warm_launcher.Become as other:
            command, environment, ranks = other.command, other.environment, 1
            words = warm_launcher.program_of(command)
            path = [folder for folder in environment.get("PYTHONPATH", "").split(":") if folder]


def run(words: list[str], path: list[str]) -> None:
    """Runs a program or a module of the launcher, as a new interpreter would.

    Args:
        words: the program's path, or the module's name, and the arguments.
        path: `sys.path` after the program's own folder.
    """
    program, *arguments = words
    module = warm_launcher.module_of(program)
    if module is not None:
        sys.argv = [module.__file__, *arguments]
        sys.path[:] = [os.getcwd(), *path]
        try:
            module.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the end of an interpreter with torch in it would take a second
    sys.argv = words
    sys.path[:] = [str(Path(program).resolve().parent), *path]
    runpy.run_path(program, run_name="__main__")


def is_rank(ranks: int) -> bool:
    """Forks a process for each rank; returns True in each of them.

    In a rank, RANK and the other variables of a launcher are set. The calling process doesn't
    return: as a launcher does, it waits for the ranks, ends the others when one fails, and exits
    with the exit code of the first rank that failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = set()
    for rank in range(ranks):
        process = os.fork()
        if process == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return True
        processes.add(process)
    first_failure = 0
    while processes:
        process, status = os.wait()
        processes.discard(process)
        code = os.waitstatus_to_exitcode(status)
        if code and not first_failure:
            first_failure = code
            end(processes)
    os._exit(first_failure if first_failure >= 0 else 128 - first_failure)


def end(processes: set[int]) -> None:
    """Ends ranks: SIGTERM, and after LEAVE_S seconds SIGKILL for those that still run."""
    for process in processes:
        os.kill(process, signal.SIGTERM)
    last = time.monotonic() + LEAVE_S
    while processes and time.monotonic() < last:
        process, _ = os.waitpid(-1, os.WNOHANG)
        processes.discard(process)
        time.sleep(0.05)
    for process in processes:
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
