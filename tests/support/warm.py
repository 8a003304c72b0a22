"""Starts programs from a warm server, a process that has already imported torch and DeepSpeed."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.warm_launcher import ROOM

START_S = 120  # time for the server's imports on a busy machine


class WarmServer:
    """A server that runs programs of one checkout (warm_server.py); it ends with this process.

    Args:
        root: the checkout, which contains tests/support/warm_server.py.
        environment: environment variables of the server. Those that libraries read when they are
            imported apply to all programs.
    """

    def __init__(self, root: Path, environment: dict[str, str]):
        self.folder = tempfile.TemporaryDirectory(prefix="warm")
        self.address = str(Path(self.folder.name) / "socket")
        command = [sys.executable, root / "tests" / "support" / "warm_server.py", self.address]
        command += [ROOM * " "]  # for the command lines of programs
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            env=environment,
            cwd=root,
            start_new_session=True,
        )

    def start(
        self, words: list[str], cwd: Path, environment: dict[str, str], path: list[str], ranks: int
    ) -> "WarmProcess":
        """Starts a program.

        Args:
            words: the program's path and its arguments.
            cwd: the program's working directory.
            environment: the program's environment variables.
            path: folders to insert in `sys.path` after the program's own folder.
            ranks: number of processes that run the program, as ranks of one group.
        """
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        last = time.monotonic() + START_S
        while client.connect_ex(self.address):
            assert self.process.poll() is None, "the warm server ended"
            assert time.monotonic() < last, "the warm server did not start"
            time.sleep(0.02)
        request = {"words": words, "cwd": str(cwd), "environment": environment}
        request |= {"path": path, "ranks": ranks}
        out, out_end = os.pipe()
        errors, errors_end = os.pipe()
        socket.send_fds(client, [(json.dumps(request) + "\n").encode()], [out_end, errors_end])
        os.close(out_end)
        os.close(errors_end)
        return WarmProcess(words, client, out, errors)

    def close(self) -> None:
        """Ends the server; running programs continue."""
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


class WarmProcess:
    """A program that the server forked, with the methods of subprocess.Popen that tests use.

    Attributes:
        pid: process id, which is also the id of the session and the process group.
        returncode: exit code, negative for a signal; None until the end is known.
    """

    def __init__(self, words: list[str], client: socket.socket, out: int, errors: int):
        self.args, self.returncode = words, None
        self._client, self._answer = client, b""
        self._output = {out: [], errors: []}
        self._open = [out, errors]
        while b"\n" not in self._answer:
            received = client.recv(64)
            assert received, "the warm server ended"
            self._answer += received
        first, self._answer = self._answer.split(b"\n", 1)
        self.pid = int(first)

    def poll(self) -> int | None:
        """Returns the exit code, or None while the program runs."""
        self._hear(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code. Raises subprocess.TimeoutExpired."""
        self._hear(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end and returns (stdout, stderr). Raises subprocess.TimeoutExpired."""
        last = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as ready:
            for file in self._open:
                ready.register(file, selectors.EVENT_READ)
            while self._open:
                left = None if last is None else last - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in ready.select(left):
                    data = os.read(key.fd, 1 << 16)
                    self._output[key.fd].append(data)
                    if not data:
                        ready.unregister(key.fd)
                        self._open.remove(key.fd)
                        os.close(key.fd)
        self.wait(None if last is None else max(last - time.monotonic(), 0.1))
        out, errors = (b"".join(parts).decode() for parts in self._output.values())
        return out, errors

    def send_signal(self, number: int) -> None:
        """Sends a signal if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _hear(self, timeout: float | None) -> None:
        if self.returncode is not None:
            return
        last = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._answer:
            self._client.settimeout(None if last is None else max(last - time.monotonic(), 0.001))
            try:
                received = self._client.recv(64)
            except TimeoutError:
                return
            assert received, "the warm server ended"
            self._answer += received
        self.returncode = int(self._answer)
        self._client.close()
