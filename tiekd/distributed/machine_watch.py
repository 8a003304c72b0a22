"""Detects within a minute that another machine of a run is lost.

When a machine loses its power or its network, the ranks on other machines would wait in a
collective until the process group's timeout. So the first rank of every machine keeps a TCP
connection with rank 0, on which no data are sent, but the kernels exchange keep-alive packets. A
machine counts as lost if it doesn't answer these for a minute. It also counts as lost, without
delay, if its connection closes without the farewell byte that a finished rank sends. The cost is
one thread and a few empty packets per minute.

Not covered: lost ranks on a machine that still runs; the launcher there ends the machine's other
ranks.
"""

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Callable

from tiekd.distributed import comm
from tiekd.errors import LaunchError

# TCP keep-alive settings: after 15 s of silence a probe is sent every 5 s. A machine counts as lost
# after 9 probes without an answer, a minute in all.
_SILENT_S = 15
_ASK_EVERY_S = 5
_ASK_TIMES = 9
_CONNECT_S = 120.0
_FAREWELL = b"."
_connections: dict[socket.socket, str] = {}  # connection -> the machine at its other end

OnLoss = Callable[[str, bool], None]


def watch_machines(on_loss: OnLoss) -> None:
    """Starts to watch the other machines. Collective.

    Rank 0's machine watches all others, and the others watch rank 0's.

    Args:
        on_loss: Called in another thread with the lost machine's name, and with True if it stopped
            answering, False if its connection closed.

    Raises:
        LaunchError: A machine can't be reached.
    """
    # Only the rank with LOCAL_RANK 0 of each machine watches. With a single machine there is
    # nothing to watch.
    firsts = sum(comm.gather_objects(os.environ["LOCAL_RANK"] == "0"))
    if firsts < 2:
        return
    listener = _listen() if comm.is_main() else None
    # The secret identifies the run, so that connections from other processes, such as port
    # scanners, are refused.
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
    """Tells the other machines that this process ends because it has finished.

    A byte is sent on every connection that `watch_machines` has made. Without it, the other
    machines would take the closed connection for a lost machine.
    """
    for connection in _connections:
        try:
            connection.sendall(_FAREWELL)
        except OSError:
            # The connection is closed already, since the process at its other end finished earlier.
            continue


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(listener: socket.socket, secret: str, count: int) -> None:
    """Accepts connections on rank 0 until each other machine has connected.

    The connections are stored in `_connections`. One that doesn't send the run's secret is dropped
    and not counted.

    Args:
        listener: Rank 0's listening socket; closed at the end.
        secret: The text by which a rank of this run identifies itself.
        count: The number of other machines.

    Raises:
        OSError: A machine didn't connect within _CONNECT_S seconds.
    """
    listener.settimeout(_CONNECT_S)
    with listener:
        while len(_connections) < count:
            connection, _ = listener.accept()
            connection.settimeout(_CONNECT_S)
            said, _, name = connection.makefile(errors="replace").readline().strip().partition(" ")
            # Keep only connections that send the secret, since any process on the network can
            # connect.
            if secrets.compare_digest(said.encode(), secret.encode()):
                _store_connection(connection, name)


def _connect(address: str, port: int, secret: str) -> None:
    connection = socket.create_connection((address, port), timeout=_CONNECT_S)
    connection.sendall(f"{secret} {socket.gethostname()}\n".encode())
    _store_connection(connection, address)


def _store_connection(connection: socket.socket, name: str) -> None:
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
        # Only the farewell byte is ever sent on these connections. An event without it means that
        # the connection has ended.
        while selector.get_map():
            for key, _ in selector.select():
                silent = False
                try:
                    said = key.fileobj.recv(1)
                except ConnectionResetError:
                    said = b""
                except OSError:
                    # The read fails if the machine doesn't answer keep-alive packets, or if there
                    # is no route to it.
                    said = b""
                    silent = True
                if said != _FAREWELL:
                    on_loss(connections[key.fileobj], silent)
                    return
                selector.unregister(key.fileobj)
