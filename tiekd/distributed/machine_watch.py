"""Watches the other machines of a run.

A machine that loses its power or its network cable reports nothing: ranks on the others would wait
in a collective until the process group's timeout. So the first rank of every machine keeps a
connection to rank 0. Nothing is sent on it; the kernels send keep-alive packets, and a machine that
is silent for a minute is lost. If a connection closes without a farewell, a rank is lost, at once.
Costs one thread and a few empty packets a minute.

Left out: ranks of one machine, which its launcher ends together.
"""

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable

from tiekd.distributed import comm
from tiekd.errors import LaunchError

# TCP keep-alive: a machine is lost after 15 + 9 * 5 seconds of silence, a minute.
_SILENT_S = 15
_ASK_EVERY_S = 5
_ASK_TIMES = 9
_CONNECT_S = 120.0
_FAREWELL = b"."
_connections: dict[socket.socket, str] = {}  # the machine at the other end

OnLoss = Callable[[str, bool], None]


def watch_machines(on_loss: OnLoss) -> None:
    """Starts to watch the other machines. Collective.

    Rank 0's machine watches all others, and the others watch rank 0's.

    Args:
        on_loss: called in another thread with the lost machine's name, and with True if it fell
            silent, False if its connection closed.

    Raises:
        LaunchError: a machine can't be reached.
    """
    # One rank per machine watches; on a single machine there is nothing to watch.
    firsts = sum(comm.gather_objects(os.environ["LOCAL_RANK"] == "0"))
    if firsts < 2:
        return
    listener = _listen() if comm.is_main() else None
    # The secret keeps connections of strangers, port scanners for one, out of the watch.
    port, secret = comm.broadcast_object(
        listener and (listener.getsockname()[1], secrets.token_hex(16))
    )
    try:
        if listener is not None:
            _accept(listener, secret, firsts - 1)
        elif os.environ["LOCAL_RANK"] == "0":
            _connect(os.environ["MASTER_ADDR"], port, secret)
    except OSError as error:
        raise LaunchError(
            f"{socket.gethostname()}: no connection between the machines on port {port} of "
            f"{os.environ['MASTER_ADDR']} ({error}); ranks need all ports above 1023 open between "
            "the machines"
        ) from None
    if _connections:
        threading.Thread(
            target=_watch, args=(dict(_connections), on_loss), name="peers", daemon=True
        ).start()


def say_farewell() -> None:
    """Tells the other machines that this process ends because it has finished."""
    for connection in _connections:
        try:
            connection.sendall(_FAREWELL)
        except OSError:  # the other end has finished before
            continue


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(listener: socket.socket, secret: str, count: int) -> None:
    """Accepts the connections of `count` machines that know the secret."""
    listener.settimeout(_CONNECT_S)
    with listener:
        while len(_connections) < count:
            connection, _ = listener.accept()
            connection.settimeout(_CONNECT_S)
            said, _, name = connection.makefile(errors="replace").readline().strip().partition(" ")
            # Any process on the network can connect; only ranks of this run know the secret.
            if secrets.compare_digest(said.encode(), secret.encode()):
                _keep(connection, name)


def _connect(address: str, port: int, secret: str) -> None:
    connection = socket.create_connection((address, port), timeout=_CONNECT_S)
    connection.sendall(f"{secret} {socket.gethostname()}\n".encode())
    _keep(connection, address)


def _keep(connection: socket.socket, name: str) -> None:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ASK_TIMES)
    _connections[connection] = name


def _watch(connections: dict[socket.socket, str], on_loss: OnLoss) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        # Only a farewell is ever sent, so anything else that can be read is the connection's end.
        while selector.get_map():
            for key, _ in selector.select():
                silent = False
                try:
                    said = key.fileobj.recv(1)
                except ConnectionResetError:
                    said = b""
                except OSError:  # no answer to keep-alive packets, or no route to the machine
                    said = b""
                    silent = True
                if said != _FAREWELL:
                    on_loss(connections[key.fileobj], silent)
                    return
                selector.unregister(key.fileobj)
