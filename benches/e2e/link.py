"""Two network namespaces and the veth pair between them: the only network that the benchmark touches."""

import atexit
import contextlib
import os
import pathlib
import signal
import subprocess

PREFIX = "adit-bench"
# Strangers invent addresses in this net for themselves.
INVENTED = "10.128.0.0/9"
OUTER_MTU = 1500
# A command of a set-up answers in milliseconds; one that hangs is a failure, not a wait.
COMMAND_LIMIT = 30.0


class Failure(Exception):
    """What one implementation could not do. The run goes on with the next."""


def run(*words, text=None, limit=COMMAND_LIMIT):
    """The standard output of a command; a failure, with what it said, if it failed."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=limit)
    except FileNotFoundError as missing:
        raise Failure(f"not installed: {words[0]}") from missing
    except subprocess.TimeoutExpired as late:
        raise Failure(f"not within {limit:.0f} s: {' '.join(words)}") from late
    if done.returncode != 0:
        raise Failure(f"{' '.join(words)}: {(done.stderr or done.stdout).strip() or f'exit code {done.returncode}'}")
    return done.stdout


class Link:
    """The namespaces `left` and `right`, 10.0.0.1 and 10.0.0.2. Closing it ends every process in them."""

    def __init__(self, udp_segmentation=True):
        self.names = [f"{PREFIX}-{os.getpid()}-{side}" for side in ("left", "right")]
        atexit.register(self.close)
        try:
            for side, name in enumerate(self.names):
                run("ip", "netns", "add", name)
                # Router solicitations and the like would wake up what is measured at rest.
                run(*self.inside(side, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"))
            left, right = self.names
            run("ip", "-n", left, "link", "add", "outer", "mtu", str(OUTER_MTU), "type", "veth",
                "peer", "name", "outer", "netns", right)
            for side, name in enumerate(self.names):
                run("ip", "-n", name, "link", "set", "lo", "up")
                run("ip", "-n", name, "address", "add", f"{self.outer(side)}/16", "dev", "outer")
                run("ip", "-n", name, "link", "set", "outer", "up")
                # As by the default route of most hosts: else replies to these addresses would cost nothing, and a host that
                # checks the way back would drop what comes from them. Nothing goes on from the right.
                way = ("blackhole", INVENTED) if side else (INVENTED, "via", self.outer(1))
                run("ip", "-n", name, "route", "add", *way)
                if not udp_segmentation:
                    run(*self.inside(side, "ethtool", "-K", "outer", "tx-udp-segmentation", "off"))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def outer(side):
        return f"10.0.0.{side + 1}"

    def inside(self, side, *words):
        return ["ip", "netns", "exec", self.names[side], *words]

    def read(self, side, path):
        """A file of /proc as the namespace sees it."""
        return run(*self.inside(side, "cat", path))

    def counters(self):
        """What /proc/net/snmp and /proc/net/netstat count, by names like TcpRetransSegs, summed over both ends."""
        total = {}
        for side in range(2):
            lines = (self.read(side, "/proc/net/snmp") + self.read(side, "/proc/net/netstat")).splitlines()
            for names, values in zip(lines[::2], lines[1::2]):
                group, names = names.split(":")
                for name, value in zip(names.split(), values.split(":")[1].split()):
                    total[group + name] = total.get(group + name, 0) + int(value)
        return total

    def close(self):
        with undisturbed():
            for name in self.names:
                remove(name)
        atexit.unregister(self.close)


@contextlib.contextmanager
def undisturbed():
    """Ctrl-C waits until what was begun is cleaned up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def remove(namespace):
    """Ends the processes of a namespace and deletes it; does nothing if it is not there."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for pid in found.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def sweep():
    """Removes what an earlier run left behind that was killed before it could clean up."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"{PREFIX}-") and not pathlib.Path(f"/proc/{name.split('-')[2]}").exists():
            remove(name)
