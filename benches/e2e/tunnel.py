"""Implementations of WireGuard, and tunnels of them over a link.

The inner addresses are 192.168.241.1 on the left and, on the right, .2 of a pair or .10 and up of a star.
"""

import math
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Callable

from link import Failure, run

START_LIMIT = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
LEFT, RIGHT = 0, 1
PORT = 51820
HUB = "192.168.241.1"


@dataclass(frozen=True)
class Implementation:
    """`command` gets the interface's name as its last word. The kernel's has none, nor has the bare link.

    `forward` says how a program is told what to forward that has no interface, but takes TCP on a port of the left: it
    gets the keys, the endpoint and the ports, and gives the words behind `command` and the text of its file.
    """

    name: str
    command: tuple = ()
    environment: dict = field(default_factory=dict, hash=False)
    is_tunnel: bool = True
    forward: Callable | None = field(default=None, hash=False)

    @property
    def is_process(self):
        return bool(self.command)


def has_kernel_module():
    """Tries it in a namespace that ends with the trial."""
    return succeeds("unshare", "--net", "ip", "link", "add", "probe", "type", "wireguard")


class Interface:
    """An interface of one implementation in one namespace, with its daemon where it has one."""

    def __init__(self, link, side, implementation, name, log):
        self.link, self.side, self.name, self.implementation = link, side, name, implementation
        self.daemon = self.public_key = None
        if implementation.is_process:
            environment = os.environ | {"LOG_LEVEL": "error", "WG_SUDO": "1"} | implementation.environment
            words = link.inside(side, *implementation.command, name)
            # `ip netns exec` becomes the daemon, so that the process is the daemon's.
            self.daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        else:
            run("ip", "-n", link.names[side], "link", "add", name, "type", "wireguard")

    def wait(self):
        wait_until(f"{self.implementation.name} answers wg", lambda: self.is_alive() and succeeds(
            *self.link.inside(self.side, "wg", "show", self.name)))

    def configure(self, key, port, peers):
        """`peers` are public key, allowed IP and endpoint or None."""
        # boringtun does not tell its keys.
        self.public_key = public_key(key)
        lines = ["[Interface]", f"PrivateKey = {key}", f"ListenPort = {port}"]
        for public, allowed, endpoint in peers:
            lines += ["[Peer]", f"PublicKey = {public}", f"AllowedIPs = {allowed}"]
            lines += [f"Endpoint = {endpoint}"] if endpoint else []
        run(*self.link.inside(self.side, "wg", "setconf", self.name, "/dev/stdin"), text="\n".join(lines) + "\n")

    def up(self, address, mtu):
        run("ip", "-n", self.link.names[self.side], "address", "add", address, "dev", self.name)
        run("ip", "-n", self.link.names[self.side], "link", "set", self.name, "mtu", str(mtu), "up")

    def is_alive(self):
        """Fails with the daemon's exit code once it has ended; true otherwise, and where there is no daemon."""
        if self.daemon and self.daemon.poll() is not None:
            raise Failure(f"{self.implementation.name} ended with {self.daemon.returncode}")
        return True

    def cpu(self):
        """Processor seconds of the daemon and of the kernel's work in its name; NaN where there is no daemon."""
        if not self.daemon:
            return math.nan
        self.is_alive()
        fields = pathlib.Path(f"/proc/{self.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def threads(self):
        """Processor seconds to the nanosecond, and context switches, of the threads that live now."""
        seconds = switches = 0
        for task in pathlib.Path(f"/proc/{self.daemon.pid}/task").iterdir():
            seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.split()[1])
        return seconds, switches

    def peak_memory_mb(self):
        if not self.daemon:
            return math.nan
        self.is_alive()
        status = pathlib.Path(f"/proc/{self.daemon.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1000

    def close(self):
        if self.daemon:
            self.daemon.kill()
            self.daemon.wait()
            pathlib.Path(f"/var/run/wireguard/{self.name}.sock").unlink(missing_ok=True)
        else:
            subprocess.run(["ip", "-n", self.link.names[self.side], "link", "delete", self.name], capture_output=True)


@dataclass(frozen=True)
class Way:
    """What a forwarding program is told: its key's file, the peer, and the ports that lead to the same ports of `target`."""

    key_file: pathlib.Path
    peer: str
    endpoint: str
    address: str
    target: str
    ports: tuple
    mtu: int


def by_adit(way):
    """`adit proxy`: everything in a file."""
    forwards = [f"[TCPClientTunnel]\nBindAddress = 127.0.0.1:{port}\nTarget = {way.target}:{port}\n" for port in way.ports]
    file = way.key_file.with_suffix(".conf")
    file.write_text(
        f"[Interface]\nPrivateKeyFile = {way.key_file}\nAddress = {way.address}/24\nMTU = {way.mtu}\n"
        f"[Peer]\nPublicKey = {way.peer}\nEndpoint = {way.endpoint}\nAllowedIPs = {way.target}/32\n" + "".join(forwards))
    return ("proxy", "-c", str(file))


def by_onetun(way):
    """onetun: everything in arguments."""
    return (*(f"127.0.0.1:{port}:{way.target}:{port}:TCP" for port in way.ports), "--private-key-file", str(way.key_file),
            "--endpoint-public-key", way.peer, "--endpoint-addr", way.endpoint, "--source-peer-ip", way.address,
            "--max-transmission-unit", str(way.mtu), "--log", "error")


class Forwarder(Interface):
    """A program on the left that takes TCP on ports of its own and carries it to the same ports of the right's address."""

    def __init__(self, link, implementation, way, log):
        self.link, self.side, self.name, self.implementation = link, LEFT, implementation.name, implementation
        self.ports = way.ports
        environment = os.environ | implementation.environment
        words = link.inside(LEFT, *implementation.command, *implementation.forward(way))
        self.daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def wait(self):
        script = "import socket, sys; [socket.create_connection(('127.0.0.1', int(p))) for p in sys.argv[1:]]"
        for port in self.ports:
            wait_until(f"{self.implementation.name} listens on port {port}", lambda: self.is_alive() and succeeds(
                *self.link.inside(LEFT, sys.executable, "-c", script, str(port))))


class Tunnel:
    """Interfaces that belong together, and the `addresses` on the right that the left reaches through them.

    Empty, it is the bare link.
    """

    def __init__(self, link, log):
        self.link, self.log = link, log
        self.interfaces, self.addresses = [], [link.outer(RIGHT)]

    def add(self, side, implementation):
        interface = Interface(self.link, side, implementation, f"b{os.getpid()}n{len(self.interfaces)}", self.log)
        self.interfaces.append(interface)
        return interface

    def cpu(self):
        return sum(interface.cpu() for interface in self.interfaces) if self.interfaces else math.nan

    def peak_memory_mb(self, implementation):
        """The largest of the daemons of one implementation: a mixed pair has two."""
        of_it = [interface for interface in self.interfaces if interface.implementation == implementation]
        return max((interface.peak_memory_mb() for interface in of_it), default=math.nan)

    def connect(self):
        """Waits until every address answers: handshakes are done, neighbours known."""
        for address in self.addresses:
            wait_until(f"a ping to {address} passes", lambda: all(i.is_alive() for i in self.interfaces) and succeeds(
                *self.link.inside(LEFT, "ping", "-n", "-c", "1", "-W", "1", address)))

    def lead(self, port):
        """From now on the left sends to this port of the right, and the right to whoever forwards that.

        The peer is made anew: boringtun refuses changes of one that it knows.
        """
        left, right = self.interfaces
        peer = self.link.inside(LEFT, "wg", "set", left.name, "peer", right.public_key)
        run(*peer, "remove")
        run(*peer, "endpoint", f"{self.link.outer(RIGHT)}:{port}", "allowed-ips", f"{self.addresses[0]}/32")

    def newcomer(self):
        """A peer of the left that was not there before, and that has not yet said anything."""
        left, old = self.interfaces[0], self.interfaces[1]
        key, public = key_pair()
        run(*self.link.inside(LEFT, "wg", "set", left.name, "peer", public, "allowed-ips", "192.168.241.3/32"))
        new = self.add(RIGHT, old.implementation)
        new.wait()
        new.configure(key, PORT + 2, [(left.public_key, "192.168.241.1/32", f"{self.link.outer(LEFT)}:{PORT}")])
        new.up("192.168.241.3/24", 1420)
        return new

    def first_answer(self, new, limit):
        """Seconds until it has an answer from the left."""
        begun = time.monotonic()
        while time.monotonic() < begun + limit:
            if all(interface.is_alive() for interface in self.interfaces) and succeeds(
                    *self.link.inside(RIGHT, "ping", "-n", "-c", "1", "-W", "1", "-I", new.name, "192.168.241.1")):
                return time.monotonic() - begun
        raise Failure(f"a new peer has no answer within {limit:.0f} s")

    def close(self):
        for interface in self.interfaces:
            interface.close()


def pair(link, log, left, right, mtu):
    """One interface at each end."""
    tunnel = Tunnel(link, log)
    if not left.is_tunnel:
        return tunnel
    with closing_on_failure(tunnel):
        ends = [tunnel.add(LEFT, left), tunnel.add(RIGHT, right)]
        keys = [key_pair(), key_pair()]
        for side, end in enumerate(ends):
            end.wait()
            other = 1 - side
            peer = (keys[other][1], f"192.168.241.{other + 1}/32", f"{link.outer(other)}:{PORT + other}")
            end.configure(keys[side][0], PORT + side, [peer])
            end.up(f"192.168.241.{side + 1}/24", mtu)
        tunnel.addresses = ["192.168.241.2"]
    return tunnel


def forwarded(link, log, implementation, partner, ports, mtu, folder):
    """A forwarding program on the left, or an interface for comparison; the partner's interface on the right.

    `addresses` is what a client on the left connects to; behind all is 192.168.241.2.
    """
    if not implementation.forward:
        return pair(link, log, implementation, partner, mtu)
    tunnel = Tunnel(link, log)
    with closing_on_failure(tunnel):
        (key, public), (peer_key, peer) = key_pair(), key_pair()
        key_file = folder / f"{implementation.name}.key"
        key_file.touch(mode=0o600)
        key_file.write_text(key)
        end = tunnel.add(RIGHT, partner)
        end.wait()
        end.configure(peer_key, PORT + 1, [(public, "192.168.241.1/32", None)])
        end.up("192.168.241.2/24", mtu)
        way = Way(key_file, peer, f"{link.outer(RIGHT)}:{PORT + 1}", "192.168.241.1", "192.168.241.2", ports, mtu)
        forwarder = Forwarder(link, implementation, way, log)
        tunnel.interfaces.insert(0, forwarder)
        forwarder.wait()
        tunnel.addresses = ["127.0.0.1"]
    return tunnel


def star(link, log, implementation, peers, mtu):
    """One interface on the left with many peers, each an interface with a daemon of its own on the right."""
    tunnel = Tunnel(link, log)
    if not implementation.is_tunnel:
        tunnel.addresses = [f"10.0.1.{number + 1}" for number in range(peers)]
        for address in tunnel.addresses:
            run("ip", "-n", link.names[RIGHT], "address", "add", f"{address}/16", "dev", "outer")
        return tunnel
    with closing_on_failure(tunnel):
        hub, (hub_key, hub_public) = tunnel.add(LEFT, implementation), key_pair()
        tunnel.addresses = [f"192.168.241.{number + 10}" for number in range(peers)]
        leaves = [tunnel.add(RIGHT, implementation) for _ in range(peers)]
        known = []
        for number, (leaf, address) in enumerate(zip(leaves, tunnel.addresses)):
            key, public = key_pair()
            known.append((public, f"{address}/32", f"{link.outer(RIGHT)}:{PORT + 1 + number}"))
            leaf.wait()
            leaf.configure(key, PORT + 1 + number, [(hub_public, f"{HUB}/32", f"{link.outer(LEFT)}:{PORT}")])
            leaf.up(f"{address}/32", mtu)
            # All leaves reach the hub's one address: each by its own interface.
            words, table = ("ip", "-n", link.names[RIGHT]), str(100 + number)
            run(*words, "route", "add", HUB, "dev", leaf.name, "table", table)
            run(*words, "rule", "add", "from", address, "lookup", table)
        hub.wait()
        hub.configure(hub_key, PORT, known)
        hub.up(f"{HUB}/24", mtu)
    return tunnel


def responder(link, log, implementation, key, peers, mtu):
    """One interface on the left that knows many public keys, and nobody on the right."""
    tunnel = Tunnel(link, log)
    with closing_on_failure(tunnel):
        only = tunnel.add(LEFT, implementation)
        only.wait()
        only.configure(key, PORT, [(public, f"172.16.{n >> 8}.{n & 255}/32", None) for n, public in enumerate(peers)])
        only.up(f"{HUB}/24", mtu)
    tunnel.addresses = []
    return tunnel


class closing_on_failure:
    def __init__(self, tunnel):
        self.tunnel = tunnel

    def __enter__(self):
        return self.tunnel

    def __exit__(self, kind, *_):
        if kind:
            self.tunnel.close()


def key_pair():
    private = run("wg", "genkey").strip()
    return private, public_key(private)


def public_key(private):
    return run("wg", "pubkey", text=private).strip()


def succeeds(*words):
    return subprocess.run(words, capture_output=True).returncode == 0


def wait_until(what, holds):
    end = time.monotonic() + START_LIMIT
    while not holds():
        if time.monotonic() > end:
            raise Failure(f"not within {START_LIMIT:.0f} s: {what}")
        time.sleep(0.02)
