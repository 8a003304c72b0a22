"""Two machines on this one, joined by one cable.

They are namespaces of their own for network, processes, host name and mounts.

Each has a network interface that leads nowhere but to the other machine, its own process numbers,
/etc/hosts, /run and ssh configuration, and sees this machine's files. Its first process reads from
a pipe that the test holds; when that process ends, for whatever reason, the kernel ends all others
of the machine and takes the interface away. Left out: disks of their own (see `hide`), and users
but root.
"""

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

NAMES = ("node1", "node2")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
_NAMESPACES = ["--net", "--uts", "--ipc", "--mount", "--pid"]


class Machine:
    """One machine; leaving its `with` ends it."""

    def __init__(self, name: str, start: str = ""):
        """Starts the machine.

        start: shell commands that it runs first, in its own namespaces.
        """
        self.name = name
        script = f"set -e; hostname {name}; ip link set lo up; {start}\necho up; read _"
        self._unshare = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C of the tests is theirs alone
        )
        assert self._unshare.stdout.readline() == b"up\n", f"{name} did not start"
        (self._first,) = psutil.Process(self._unshare.pid).children()
        self.process_id = self._first.pid
        # Its interface stays while this is open: else the other machine would lose its end of the
        # cable too.
        self._network = os.open(f"/proc/{self.process_id}/ns/net", os.O_RDONLY)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        os.close(self._network)

    def command(self, *command, folder: Path = Path("/")) -> list[str]:
        """Returns a command that runs on this machine, in a folder."""
        enter = ["nsenter", f"--target={self.process_id}", *_NAMESPACES]
        return [*enter, "env", "-C", str(folder), *map(str, command)]

    def run(self, *command) -> str:
        return subprocess.run(
            self.command(*command), check=True, capture_output=True, text=True
        ).stdout

    def hide(self, folder: Path) -> None:
        """Makes this machine see an empty folder there from now on."""
        self.run("mount", "-t", "tmpfs", "tmpfs", folder)

    def show(self, folder: Path) -> None:
        self.run("umount", folder)

    def cut(self) -> None:
        """Pulls the cable: nothing comes or goes, and nobody is told."""
        self.run("ip", "link", "set", "eth0", "down")

    def processes(self) -> dict[psutil.Process, str]:
        """Returns the processes there, with their commands.

        Left out are the first process and the sshd that listens.
        """
        found = {
            p: c for p, c in _of_namespace(self.process_id).items() if p.pid != self.process_id
        }
        return {
            process: command for process, command in found.items() if "[listener]" not in command
        }

    def kill(self) -> None:
        """Switches the machine off: SIGKILL to its first process, and so to all."""
        if self._unshare.poll() is None:
            self._unshare.kill()
            self._first.kill()
            self._unshare.communicate()
            psutil.wait_procs([self._first], timeout=10)


def pair(folder: Path, ssh: bool) -> tuple[Machine, Machine]:
    """Two machines that know each other by name; with `ssh`, root of each may log in to the other.

    folder: made, for keys and configuration; the caller ends the machines. Skips the test where
    they can't be made.
    """
    _skip_without(*(["ssh", "ssh-keygen", "sshd", "pdsh"] if ssh else []))
    folder.mkdir()
    (folder / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(map("{} {}\n".format, ADDRESSES, NAMES))
    )
    start = f"mount --bind {folder}/hosts /etc/hosts; mount -t tmpfs tmpfs /run"
    if ssh:
        _write_ssh(folder)
        start += f"; mount --bind {folder}/ssh_config /etc/ssh/ssh_config; mkdir /run/sshd"
    machines = []
    try:
        machines += [Machine(name, start) for name in NAMES]
        cable = [
            "ip",
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            machines[1].process_id,
        ]
        net_of_first = ["nsenter", f"--target={machines[0].process_id}", "--net"]
        subprocess.run([str(word) for word in [*net_of_first, *cable]], check=True)
        for machine, address in zip(machines, ADDRESSES, strict=True):
            machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")
            if ssh:
                machine.run(shutil.which("sshd", path=_path()), "-f", folder / "sshd_config")
    except BaseException:
        for machine in machines:
            machine.kill()
        raise
    return machines[0], machines[1]


def _skip_without(*programs: str) -> None:
    """Skips the test where two machines can't be made."""
    missing = [
        name
        for name in ("ip", "unshare", "nsenter", *programs)
        if shutil.which(name, path=_path()) is None
    ]
    if missing:
        pytest.skip(f"two machines: {', '.join(missing)} not installed")
    probe = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "true"], capture_output=True, text=True
    )
    if probe.returncode != 0:
        pytest.skip(f"two machines: no namespaces here ({probe.stderr.strip()})")


def write_hostfile(path: Path, *names: str) -> Path:
    path.write_text("".join(f"{name} slots=1\n" for name in names or NAMES))
    return path


def _write_ssh(folder: Path) -> None:
    """Writes keys and ssh's settings as a user would set them up.

    Each node may enter the others, and a silent one counts as gone.
    """
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    (folder / "known_hosts").write_text(
        f"{','.join(NAMES)} {(folder / 'host_key.pub').read_text()}"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nUserKnownHostsFile {folder}/known_hosts\n"
        "IdentitiesOnly yes\nServerAliveInterval 5\nServerAliveCountMax 3\n"
    )
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\n"
        "PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
    )


def _of_namespace(first: int) -> dict[psutil.Process, str]:
    """Returns the processes in the process namespace of `first`, with their commands.

    They are seen from outside.
    """
    namespace, found = os.readlink(f"/proc/{first}/ns/pid"), {}
    for process in psutil.process_iter():
        try:
            if (
                os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found[process] = " ".join(process.cmdline())
        except (OSError, psutil.Error):  # has just ended
            continue
    return found


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
