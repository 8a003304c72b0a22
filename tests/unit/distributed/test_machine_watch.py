"""The signs by which another machine is lost; two_machines.py has the real thing."""

import socket
import struct
import threading

import pytest

from tiekd.distributed import machine_watch


@pytest.fixture
def watched():
    """Watches one end of each of two connections.

    Yields the other ends, and the losses that were reported.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    here = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    there = [listener.accept()[0] for _ in here]
    told, seen = [], threading.Event()
    connections = dict(zip(here, ("a", "b"), strict=True))
    arguments = (connections, lambda *loss: (told.append(loss), seen.set()))
    thread = threading.Thread(target=machine_watch._watch, args=arguments)
    thread.start()
    yield there, told, seen, thread
    for connection in [*here, *there, listener]:
        connection.close()
    thread.join(10)
    assert not thread.is_alive()


def test_watch_closed_connection_is_loss(watched):
    """A connection that closes without a farewell is reported as a lost machine."""
    there, told, seen, _ = watched
    assert not seen.wait(0.2)
    there[1].close()
    assert seen.wait(10)
    assert told == [("b", False)]


def test_watch_reset_connection_is_loss(watched):
    """A connection that is reset is reported as a lost machine."""
    there, told, seen, _ = watched
    there[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    there[0].close()
    assert seen.wait(10)
    assert told == [("a", False)]


def test_watch_farewell_is_no_loss(watched):
    """A machine that says farewell is not lost; the others are still watched."""
    there, told, seen, _ = watched
    there[0].sendall(machine_watch._FAREWELL)
    there[0].close()
    assert not seen.wait(0.5)
    there[1].close()
    assert seen.wait(10)
    assert told == [("b", False)]


def test_watch_ends_after_all_farewells(watched):
    """The watching thread ends when every machine has said farewell."""
    there, told, _, thread = watched
    for connection in there:
        connection.sendall(machine_watch._FAREWELL)
    thread.join(10)
    assert not thread.is_alive()
    assert told == []


def test_accept_requires_secret_and_sets_keepalive(monkeypatch):
    """Only a peer with the secret is accepted, and its TCP keepalive takes 60 s."""
    monkeypatch.setattr(machine_watch, "_connections", kept := {})
    listener = machine_watch._listen()
    port = listener.getsockname()[1]
    accepting = threading.Thread(target=machine_watch._accept, args=(listener, "secret", 1))
    accepting.start()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"guess x\n")
        with socket.create_connection(("127.0.0.1", port)) as machine:
            machine.sendall(b"secret node2\n")
            accepting.join(10)
    assert not accepting.is_alive()
    ((connection, name),) = kept.items()
    assert name == "node2"
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, every, times = (connection.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert idle + every * times == 60
    connection.close()
