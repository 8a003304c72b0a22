"""Simulates two machines, connected by one network cable, on this machine.

Each machine is a set of namespaces for network, processes, host name and mounts. It has a network
interface that is connected to the other machine only, its own process ids, /etc/hosts, /run and ssh
configuration, and it sees this machine's files. Its first process reads from a pipe that the test
keeps open. When that process ends, the kernel kills all other processes of the machine and removes
the interface. Not covered: separate disks (see `hide`), and users other than root.
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
    """Context manager of one machine, which is switched off at the end."""

    def __init__(self, name: str, start: str = ""):
        """Starts the machine.

        Args:
            name: host name of the machine.
            start: shell commands that the machine runs first, in its own namespaces.
        """
        self.name = name
        script = f"set -e; hostname {name}; ip link set lo up; {start}\necho up; read _"
        self._unshare = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the tests only
        )
        assert self._unshare.stdout.readline() == b"up\n", f"{name} did not start"
        (self._first,) = psutil.Process(self._unshare.pid).children()
        self.process_id = self._first.pid
        # The interface exists while this file is open. If it were removed, the other machine would
        # lose its end of the cable, too.
        self._network = os.open(f"/proc/{self.process_id}/ns/net", os.O_RDONLY)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_) -> None:
        self.kill()
        os.close(self._network)

    def command(self, *command, folder: Path = Path("/")) -> list[str]:
        """Returns the command line that runs a command on this machine, in a folder."""
        enter = ["nsenter", f"--target={self.process_id}", *_NAMESPACES]
        return [*enter, "env", "-C", str(folder), *map(str, command)]

    def run(self, *command) -> str:
        return subprocess.run(
            self.command(*command), check=True, capture_output=True, text=True
        ).stdout

    def hide(self, folder: Path) -> None:
        """Mounts an empty folder over `folder` on this machine, until `show` is called."""
        self.run("mount", "-t", "tmpfs", "tmpfs", folder)

    def show(self, folder: Path) -> None:
        self.run("umount", folder)

    def cut(self) -> None:
        """Disconnects the cable: packets are lost without any error message."""
        self.run("ip", "link", "set", "eth0", "down")

    def processes(self) -> dict[psutil.Process, str]:
        """Returns process -> command line of the machine's processes.

        The first process and the listening sshd are left out.
        """
        found = {
            p: c for p, c in _of_namespace(self.process_id).items() if p.pid != self.process_id
        }
        return {
            process: command for process, command in found.items() if "[listener]" not in command
        }

    def kill(self) -> None:
        """Switches the machine off: kills its first process, so that the kernel kills the rest."""
        if self._unshare.poll() is None:
            self._unshare.kill()
            self._first.kill()
            self._unshare.communicate()
            psutil.wait_procs([self._first], timeout=10)


def pair(folder: Path, ssh: bool) -> tuple[Machine, Machine]:
    """Returns two machines that know each other's host names; the caller must end them.

    The test is skipped if such machines can't be made here.

    Args:
        folder: a folder to create for keys and configuration.
        ssh: True to let root of each machine log in to the other.
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
    """Skips the test if two machines can't be made here."""
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
    """Writes ssh keys and settings, as a user would for a cluster.

    Each machine can log in to the other. A connection ends if the other machine doesn't answer.
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
    """Returns process -> command line of the processes in the namespace of process `first`.

    The process ids are those of this machine.
    """
    namespace, found = os.readlink(f"/proc/{first}/ns/pid"), {}
    for process in psutil.process_iter():
        try:
            if (
                os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found[process] = " ".join(process.cmdline())
        except (OSError, psutil.Error):  # the process has just ended
            continue
    return found


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
