#!/usr/bin/env python3
"""Implementations of WireGuard side by side, end to end.

Two network namespaces joined by a veth pair; the same implementation at both ends; the same keys, MTU and tools for
all. Rounds are interleaved (every implementation once, then again), because a machine's speed drifts; medians are
printed with minimum and maximum, and every single figure goes to a CSV file. Compare figures of one run only.

Measured in each round:
  tcp1, tcp4, tcp1r   iperf3, one stream, four streams, one stream in reverse, Gbit/s that the receiver got
  cpu_per_gb          processor seconds of both daemons per 10^9 bytes received, in tcp1
  system_per_gb       the same for the whole machine, iperf3 and kernel included
  retransmits         TCP segments sent again in tcp1 (a tunnel that reorders or drops shows here)
  rtt_p50, rtt_p99    a 64-byte UDP ping-pong, microseconds
  rtt_cpu_us          processor microseconds of both daemons per round trip (what a low latency costs)
  memory_mb           the larger of the two daemons' peak resident memory

Needs root, iperf3, wg and rustc. Nothing outside of its own namespaces is touched.
"""

import argparse
import atexit
import csv
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ["adit", "wireguard-go", "gotatun", "boringtun", "veth"]
METRICS = {
    "tcp1": "TCP 1 stream, Gbit/s",
    "tcp4": "TCP 4 streams, Gbit/s",
    "tcp1r": "TCP reverse, Gbit/s",
    "cpu_per_gb": "daemon CPU, s per GB",
    "system_per_gb": "system CPU, s per GB",
    "retransmits": "retransmits in tcp1",
    "rtt_p50": "RTT 64 B p50, us",
    "rtt_p99": "RTT 64 B p99, us",
    "rtt_cpu_us": "daemon CPU per RTT, us",
    "memory_mb": "peak memory, MB",
}
# adit's goals against others of the same run: metric, other, factor, whether more is better.
GOALS = [("tcp1", "gotatun", 1.5, True), ("rtt_p50", "boringtun", 1.1, False)]
TICKS = os.sysconf("SC_CLK_TCK")
START_LIMIT = 20.0


def out(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout


def find(name):
    path = os.environ["PATH"] + ":/usr/sbin:/sbin:" + str(pathlib.Path.home() / ".cargo/bin")
    return shutil.which(name, path=path)


class Link:
    """Two namespaces and the veth pair between them."""

    def __init__(self, args):
        self.names = [f"adit-bench-{os.getpid()}-{side}" for side in ("left", "right")]
        for name in self.names:
            out("ip", "netns", "add", name)
        left, right = self.names
        out("ip", "-n", left, "link", "add", "outer", "type", "veth", "peer", "name", "outer", "netns", right)
        for n, name in enumerate(self.names, 1):
            out("ip", "-n", name, "link", "set", "lo", "up")
            out("ip", "-n", name, "address", "add", f"10.0.0.{n}/24", "dev", "outer")
            out("ip", "-n", name, "link", "set", "outer", "up")
            if args.no_udp_segmentation:
                out(*self.inside(n - 1, "ethtool", "-K", "outer", "tx-udp-segmentation", "off"))

    def inside(self, side, *words):
        return ["ip", "netns", "exec", self.names[side], *words]

    def close(self):
        for name in self.names:
            for pid in out("ip", "netns", "pids", name, check=False).split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass
            out("ip", "netns", "delete", name, check=False)


class Tunnel:
    """A daemon at each end of the link, configured and up. The inner addresses are 192.168.241.1 and .2."""

    def __init__(self, link, name, command, mtu):
        self.daemons, self.interfaces = [], [f"b{os.getpid()}{side}" for side in "lr"]
        keys = [out("wg", "genkey").strip() for _ in range(2)]
        public = [subprocess.run(["wg", "pubkey"], input=key, capture_output=True, text=True).stdout.strip() for key in keys]
        self.log = open(ROOT / "target" / f"bench-{name}.log", "w")
        try:
            for side, interface in enumerate(self.interfaces):
                environment = os.environ | {"LOG_LEVEL": "error", "WG_SUDO": "1"}
                words = link.inside(side, *command, interface)
                self.daemons.append(subprocess.Popen(words, stdout=self.log, stderr=self.log, env=environment))
            for side, interface in enumerate(self.interfaces):
                wait(f"{name} answers", lambda: subprocess.run(["wg", "show", interface], capture_output=True).returncode == 0)
                config = (
                    f"[Interface]\nPrivateKey = {keys[side]}\nListenPort = {51821 + side}\n"
                    f"[Peer]\nPublicKey = {public[1 - side]}\nAllowedIPs = 192.168.241.{2 - side}/32\n"
                    f"Endpoint = 10.0.0.{2 - side}:{51822 - side}\n"
                )
                subprocess.run(["wg", "setconf", interface, "/dev/stdin"], input=config, text=True, check=True)
                namespace = link.names[side]
                out("ip", "-n", namespace, "address", "add", f"192.168.241.{1 + side}/24", "dev", interface)
                out("ip", "-n", namespace, "link", "set", interface, "mtu", str(mtu), "up")
        except Exception:
            self.close()
            raise

    def cpu(self):
        return sum(cpu_seconds(daemon.pid) for daemon in self.daemons)

    def peak_memory_mb(self):
        return max(peak_memory_kb(daemon.pid) for daemon in self.daemons) / 1000

    def close(self):
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
        for interface in self.interfaces:
            pathlib.Path(f"/var/run/wireguard/{interface}.sock").unlink(missing_ok=True)
        self.log.close()


class Bare:
    """No tunnel: the link itself, as the bound of what there is to reach."""

    def cpu(self):
        return 0.0

    def peak_memory_mb(self):
        return 0.0

    def close(self):
        pass


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_memory_kb(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def system_cpu_seconds():
    user, nice, system, _idle, _wait, irq, softirq, *_ = pathlib.Path("/proc/stat").read_text().split()[1:11]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def retransmits(link):
    total = 0
    for side in range(2):
        lines = [line.split() for line in out(*link.inside(side, "cat", "/proc/net/snmp")).splitlines() if line.startswith("Tcp:")]
        total += int(dict(zip(*lines))["RetransSegs"])
    return total


def wait(what, holds):
    end = time.monotonic() + START_LIMIT
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {START_LIMIT} s: {what}")
        time.sleep(0.02)


def iperf(link, address, seconds, *words):
    """Bytes received and Gbit/s."""
    server = subprocess.Popen(
        link.inside(1, "iperf3", "-s", "-1", "--forceflush", "-B", address), stdout=subprocess.PIPE, text=True
    )
    try:
        while "listening" not in (line := server.stdout.readline()):
            if not line:
                raise RuntimeError("iperf3 does not listen")
        client = out(*link.inside(0, "iperf3", "-J", "-c", address, "-t", str(seconds), *words))
        received = json.loads(client)["end"]["sum_received"]
        return received["bytes"], received["bits_per_second"] / 1e9
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def measure(link, tunnel, address, args, pingpong):
    wait("a ping passes", lambda: subprocess.run(
        link.inside(0, "ping", "-n", "-c", "1", "-W", "1", address), capture_output=True).returncode == 0)
    found = {}
    cpu, system, resent = tunnel.cpu(), system_cpu_seconds(), retransmits(link)
    received, found["tcp1"] = iperf(link, address, args.seconds)
    gigabytes = received / 1e9
    found["cpu_per_gb"] = (tunnel.cpu() - cpu) / gigabytes
    found["system_per_gb"] = (system_cpu_seconds() - system) / gigabytes
    found["retransmits"] = retransmits(link) - resent
    _, found["tcp4"] = iperf(link, address, args.seconds, "-P", "4")
    _, found["tcp1r"] = iperf(link, address, args.seconds, "-R")
    server = subprocess.Popen(link.inside(1, pingpong, "server", f"{address}:5300"))
    try:
        time.sleep(0.1)
        cpu = tunnel.cpu()
        answer = json.loads(out(*link.inside(0, pingpong, "client", f"{address}:5300", str(args.seconds), "64")))
        if answer["round_trips"] == 0:
            raise RuntimeError("no round trip")
        found["rtt_p50"], found["rtt_p99"] = answer["p50"], answer["p99"]
        found["rtt_cpu_us"] = (tunnel.cpu() - cpu) * 1e6 / answer["round_trips"]
    finally:
        server.kill()
        server.wait()
    found["memory_mb"] = tunnel.peak_memory_mb()
    return found


def commands(args):
    """The command of each implementation that is there; says which are not."""
    known = {
        "adit": ([args.adit, "-f"], args.adit),
        "wireguard-go": ([args.wireguard_go or find("wireguard-go"), "-f"], args.wireguard_go or find("wireguard-go")),
        "gotatun": ([find("gotatun"), "-f", "--disable-drop-privileges", "-v", "error"], find("gotatun")),
        "boringtun": ([find("boringtun-cli"), "-f", "--disable-drop-privileges", "-v", "error"], find("boringtun-cli")),
        "veth": ([], "ip"),
    }
    chosen = {}
    for name in args.implementations.split(","):
        command, program = known[name]
        if program and (name == "veth" or os.access(program, os.X_OK)):
            chosen[name] = command
        else:
            print(f"bench: skipped: {name} is not installed", file=sys.stderr)
    return chosen


def describe(args):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = int(open("/proc/meminfo").readline().split()[1]) / 1e6
    commit = out("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", check=False).strip() or "unknown"
    return [
        ("machine", f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GB"),
        ("kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("commit", commit),
        ("command", " ".join(sys.argv)),
        ("method", f"{args.rounds} interleaved rounds of {args.seconds} s a test, inner MTU {args.mtu}, "
                   f"outer 1500{', no UDP segmentation on the veth' if args.no_udp_segmentation else ''}"),
        ("load", f"{os.getloadavg()[0]:.2f} before the run"),
    ]


def number(value):
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def table(results, names):
    rows = [["", *names]]
    for metric, title in METRICS.items():
        row = [title]
        for name in names:
            values = [found[metric] for found in results[name]]
            if not values or (name == "veth" and metric in ("cpu_per_gb", "rtt_cpu_us", "memory_mb")):
                row.append("-")
            else:
                row.append(f"{number(statistics.median(values))} ({number(min(values))}-{number(max(values))})")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def goals(results):
    """Prints adit's goals, and gives whether all that could be looked at are met."""
    met = True
    for metric, other, factor, more in GOALS:
        if not results.get("adit") or not results.get(other):
            continue
        ours, theirs = (statistics.median(found[metric] for found in results[name]) for name in ("adit", other))
        ratio = ours / theirs
        good = ratio >= factor if more else ratio <= factor
        met &= good
        word = "at least" if more else "at most"
        print(f"{METRICS[metric]}: adit is {ratio:.2f} x {other} (goal: {word} {factor}): {'met' if good else 'NOT met'}")
    return met


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: does it work, roughly")
    parser.add_argument("--rounds", type=int, default=None, help="3 by default, 1 with --quick")
    parser.add_argument("--seconds", type=float, default=None, help="of each test: 5 by default, 1 with --quick")
    parser.add_argument("--mtu", type=int, default=1420, help="of the tunnel (1420)")
    parser.add_argument("--implementations", default=",".join(NAMES), help=f"of {','.join(NAMES)}, in this order")
    parser.add_argument("--adit", default=str(ROOT / "target/release/adit"), help="the program (target/release/adit)")
    parser.add_argument("--wireguard-go", default=None, help="another wireguard-go than the one in PATH")
    parser.add_argument("--no-udp-segmentation", action="store_true", help="as on a network card without it")
    parser.add_argument("--csv", default=str(ROOT / "target/bench-e2e.csv"), help="where single figures go")
    parser.add_argument("--check", action="store_true", help="fail if a goal of adit's is not met")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (1 if args.quick else 5)
    if os.geteuid() != 0:
        sys.exit("bench: skipped: needs root for network namespaces and TUN devices")
    missing = [tool for tool in ("ip", "wg", "ping", "iperf3", "rustc") if not find(tool)]
    if missing:
        sys.exit(f"bench: skipped: not installed: {', '.join(missing)} (scripts/install-tools.sh)")

    (ROOT / "target").mkdir(exist_ok=True)
    pingpong = str(ROOT / "target" / "pingpong")
    out("rustc", "--edition", "2024", "-O", "-o", pingpong, str(ROOT / "benches/e2e/pingpong.rs"))
    chosen = commands(args)
    facts = describe(args)
    results = {name: [] for name in chosen}
    failures = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with open(args.csv, "w", newline="") as file:
        for key, value in facts:
            file.write(f"# {key}: {value}\n")
        writer = csv.writer(file)
        writer.writerow(["round", "implementation", *METRICS])
        for round_number in range(1, args.rounds + 1):
            for name, command in chosen.items():
                print(f"round {round_number}/{args.rounds}: {name}", file=sys.stderr)
                link = Link(args)
                atexit.register(link.close)
                tunnel = None
                try:
                    tunnel = Tunnel(link, name, command, args.mtu) if name != "veth" else Bare()
                    found = measure(link, tunnel, "192.168.241.2" if name != "veth" else "10.0.0.2", args, pingpong)
                    results[name].append(found)
                    writer.writerow([round_number, name, *(round(found[metric], 4) for metric in METRICS)])
                    file.flush()
                except RuntimeError as error:
                    failures.append(f"{name}, round {round_number}: {error}")
                    print(f"bench: {failures[-1]}", file=sys.stderr)
                finally:
                    if tunnel:
                        tunnel.close()
                    link.close()
                    atexit.unregister(link.close)

    print()
    for key, value in facts:
        print(f"{key:8} {value}")
    print("\nmedian (min-max)\n")
    print(table(results, [name for name in chosen if results[name]]))
    print()
    met = goals(results)
    print(f"single figures: {args.csv}")
    for failure in failures:
        print(f"failed: {failure}")
    if failures or (args.check and not met):
        sys.exit(1)


if __name__ == "__main__":
    main()
