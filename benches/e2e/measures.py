"""What is measured: groups of tests, each on a fresh tunnel, and the metrics that they give."""

import contextlib
import math
import pathlib
import subprocess
import time
from dataclasses import dataclass
from typing import Callable

import load
import tunnel as tunnels
from link import Failure, Link, undisturbed
from tunnel import LEFT, PORT, RIGHT

TICKS = tunnels.TICKS
# The port of the generators, apart from iperf3's and the tunnels'.
TRAFFIC_PORT = 5300
# A server that was started is bound by then; so is a second one beside it.
SERVER_START = 0.15
# A queue that is not refilled is empty by then.
DRAIN = 0.2
PARALLEL = (1, 4, 16)
DIRECTIONS = {"": ((), ""), "r": (("-R",), ", reverse"), "b": (("--bidir",), ", both ways at once")}
TCP = {f"tcp{n}{d}": (("-P", str(n), *words), f"TCP {n} stream{'s' * (n > 1)}{title}")
       for n in PARALLEL for d, (words, title) in DIRECTIONS.items()}
SAVED_WITHOUT_SEGMENTATION = ("tcp1", "tcp4", "tcp1r")
FLOODS = (64, 512, 1372)
PAYLOADS = (64, 1024, 4096, 16384)
PACES_MS = (1, 10)
# A ping every so often, against the load: often enough for a p99, seldom enough to be no load.
LOADED_EVERY_US = 2000
LOADED_STREAMS = 4
LOADED_FLOOD = 1372
DNS_ASKERS = 16
VOIP_STREAMS = 100
HANDSHAKES_WINDOW = 4
# After this the traffic's last timers are those that fire at ten seconds.
IDLE_SETTLE = 1.5
IDLE_SECONDS = 5.0
# Strangers: so many datagrams a second, at the tunnel's port and at one where nobody listens.
STRANGERS_RATE, SPOOFED_RATE, SPOOFED_SOURCES = 100_000, 50_000, 1_000_000
CLOSED_PORT = 51_999
# The flood is at its rate by then, and goes on for so long after what is measured beside it, on a busy machine less.
FLOOD_START, FLOOD_REST = 0.3, 0.7
# A flood that has no seconds of its own ends when all of this has passed, if it was not ended before.
FLOOD_LIMIT = 120.0
# Bad networks by a relay on the right, in thousandths: loss, doubling, reordering, corruption; and the delay each way.
TROUBLES = {"none": (0, 0, 0, 0), "loss": (10, 0, 0, 0), "all": (10, 10, 10, 10)}
RELAY_DELAY_US, RELAY_PORT, RELAY_SEED = 2000, 51_900, 1
# A peer that was not there before has shaken hands by then, or does not count.
NEWCOMER_LIMIT = 20.0
# Through a sidecar: iperf3's own port, and the generators'.
FORWARDED = (5201, TRAFFIC_PORT)
CONNECTIONS = 1000
# Until all of them are open, and again until all have their echo.
CONNECTIONS_SECONDS = 10.0


@dataclass(frozen=True)
class Metric:
    """`more` is whether more is better, or None where it is no matter of better. `shown` is in the table as well."""

    name: str
    title: str
    unit: str
    more: bool | None = False
    shown: bool = True


@dataclass(frozen=True)
class Group:
    """`measure(bench)` yields figures by the names of metrics as they come: NaN where there is none, a `Failure` where
    there was to be one. If it raises one, that is so for all that has not come.
    `cost(seconds, quick)` is about what it takes, in seconds.
    `turns` is how often a round comes to it, each time for one of so many `parts` of a test's seconds: more often where
    figures follow the host's moods, so that no implementation has a mood to itself."""

    name: str
    title: str
    metrics: tuple
    measure: Callable
    cost: Callable
    topology: str = "pair"
    bare: bool = True
    turns: int = 1
    parts: int = 1

    def seconds(self, of_test):
        """Of one turn."""
        return of_test / self.parts


@dataclass
class Settings:
    """What holds for the whole run."""

    seconds: float
    quick: bool
    mtu: int
    peers: int
    udp_segmentation: bool
    traffic: load.Traffic
    initiations: load.Initiations | None
    # The example `stranger_flood`.
    strangers: str
    logs: pathlib.Path
    # Whose TUN device is at the far end of sidecars.
    far: tunnels.Implementation | None = None


class Bench:
    """One implementation's tunnel over a link of its own, for one group."""

    def __init__(self, settings, group, implementation, partner):
        self.settings, self.traffic = settings, settings.traffic
        self.seconds = group.seconds(settings.seconds)
        self.implementation = implementation
        self.log = open(settings.logs / f"{implementation.name}.log", "a")
        self.link = self.tunnel = None
        try:
            self.link = Link(settings.udp_segmentation and group.topology != "unsegmented")
            words = (self.link, self.log)
            if group.topology == "star":
                self.tunnel = tunnels.star(*words, implementation, settings.peers, settings.mtu)
            elif group.topology == "responder":
                made = settings.initiations
                self.tunnel = tunnels.responder(
                    *words, implementation, made.responder_key, made.initiators, settings.mtu)
            elif group.topology == "forwarded":
                self.tunnel = tunnels.forwarded(
                    *words, implementation, settings.far, FORWARDED, settings.mtu, settings.logs)
            else:
                left = partner if group.topology == "mixed" else implementation
                self.tunnel = tunnels.pair(*words, left, implementation, settings.mtu)
            self.tunnel.connect()
        except BaseException:
            self.close()
            raise

    @property
    def address(self):
        return self.tunnel.addresses[0]

    @property
    def endpoint(self):
        return f"{self.address}:{TRAFFIC_PORT}"

    def tcp(self, *words):
        return load.iperf(self.link, self.address, self.seconds, *words)

    def close(self):
        with undisturbed():
            try:
                if self.tunnel:
                    self.tunnel.close()
            finally:
                if self.link:
                    self.link.close()
                self.log.close()


def system_cpu():
    """Processor seconds of the whole machine that were not idle."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = pathlib.Path("/proc/stat").read_text().split()[1:11]
    return sum(map(int, (user, nice, system, irq, softirq))) / TICKS


def per(amount, whole, what):
    if not whole:
        raise Failure(f"{what}: nothing arrived")
    return amount / whole


# --- TCP ---

def transfers(bench, names, prefix=""):
    """Goodput, processor time and what went wrong on the way, for each test and over all of them."""
    total, sums = 0.0, dict.fromkeys(("retransmits", "out_of_order", "reordered"), 0)
    for name in names:
        before, cpu, system = bench.link.counters(), bench.tunnel.cpu(), system_cpu()
        moved = bench.tcp(*TCP[name][0])
        cpu, system, after = bench.tunnel.cpu() - cpu, system_cpu() - system, bench.link.counters()
        counted = {key: after.get(key, 0) - before.get(key, 0) for key in after}
        troubles = {
            "retransmits": counted["TcpRetransSegs"],
            "out_of_order": counted["TcpExtTCPOFOQueue"],
            "reordered": sum(counted[f"TcpExtTCP{kind}Reorder"] for kind in ("SACK", "TS", "Reno")),
        }
        yield {
            prefix + name: moved.gbits,
            f"{prefix}{name}_cpu_per_gb": per(cpu, moved.gigabytes, name),
            f"{prefix}{name}_system_per_gb": system / moved.gigabytes,
            **{f"{prefix}{name}_{key}": value for key, value in troubles.items()},
        }
        sums = {key: sums[key] + value for key, value in troubles.items()}
        total += moved.gigabytes
    yield {f"{prefix}tcp_{key}_per_gb": value / total for key, value in sums.items()}


def transfer_metrics(names, prefix="", suffix=""):
    metrics = [Metric(prefix + name, TCP[name][1] + suffix, "Gbit/s", True) for name in names]
    for name in names:
        shown = name in SAVED_WITHOUT_SEGMENTATION
        title = TCP[name][1] + suffix
        metrics += [
            Metric(f"{prefix}{name}_cpu_per_gb", f"{title}: daemon CPU", "s/GB", shown=shown),
            Metric(f"{prefix}{name}_system_per_gb", f"{title}: system CPU", "s/GB", shown=shown),
            Metric(f"{prefix}{name}_retransmits", f"{title}: retransmits", "segments", shown=False),
            Metric(f"{prefix}{name}_out_of_order", f"{title}: out of order", "segments", shown=False),
            Metric(f"{prefix}{name}_reordered", f"{title}: reordered", "events", shown=False),
        ]
    return (
        *metrics,
        Metric(f"{prefix}tcp_retransmits_per_gb", f"all TCP{suffix}: retransmits", "per GB"),
        Metric(f"{prefix}tcp_out_of_order_per_gb", f"all TCP{suffix}: received out of order, lost or not", "per GB"),
        Metric(f"{prefix}tcp_reordered_per_gb", f"all TCP{suffix}: reordering seen", "per GB"),
    )


def tcp(bench):
    return transfers(bench, [name for name in TCP if not bench.settings.quick or "16" not in name])


def unsegmented(bench):
    return transfers(bench, SAVED_WITHOUT_SEGMENTATION, "unsegmented_")


def peers(bench):
    """A stream to each of many peers at once."""
    hub = bench.tunnel.interfaces[0] if bench.tunnel.interfaces else None
    cpu, system = hub.cpu() if hub else math.nan, system_cpu()
    with load.iperf_clients(bench.link, bench.tunnel.addresses, bench.seconds) as clients:
        moved = [load.iperf_answer(client, bench.seconds) for client in clients]
    gigabytes = sum(transfer.gigabytes for transfer in moved)
    streams = [transfer.gbits for transfer in moved]
    yield {
        "peers": sum(streams),
        "peers_smallest": per(min(streams), max(streams), "peers"),
        "peers_hub_cpu_per_gb": per((hub.cpu() if hub else math.nan) - cpu, gigabytes, "peers"),
        "peers_system_per_gb": (system_cpu() - system) / gigabytes,
    }


# --- UDP ---

def one_way(bench, receive, send, argument):
    """Traffic that nobody answers: what was sent, what arrived, what the receiver's socket dropped, the daemons' CPU."""
    with bench.traffic.server(bench.link, receive, bench.endpoint) as receiver:
        time.sleep(SERVER_START)
        cpu = bench.tunnel.cpu()
        sent = bench.traffic.run(bench.link, bench.seconds, send, bench.endpoint, argument)
        time.sleep(DRAIN)
        cpu = bench.tunnel.cpu() - cpu
        drops = socket_drops(bench.link, TRAFFIC_PORT)
        return sent, bench.traffic.report(receiver, receive), drops, cpu


def flood(bench, size):
    sent, arrived, drops, cpu = one_way(bench, "flood-count", "flood-send", size)
    return {
        f"udp{size}_kpps": per(arrived["received"], arrived["seconds"], f"UDP {size} B") / 1000,
        f"udp{size}_offered_kpps": sent["sent"] / sent["seconds"] / 1000,
        f"udp{size}_loss": 100 * (1 - arrived["received"] / sent["sent"]),
        f"udp{size}_socket_loss": 100 * drops / (drops + arrived["received"]),
        f"udp{size}_cpu_us": cpu * 1e6 / arrived["received"],
    }


def socket_drops(link, port):
    """What reached the receiver's socket on the right and found its buffer full."""
    rows = [row.split() for row in link.read(RIGHT, "/proc/net/udp").splitlines()[1:]]
    return sum(int(row[-1]) for row in rows if int(row[1].split(":")[1], 16) == port)


def floods(bench):
    for size in FLOODS:
        yield flood(bench, size)


def flood_metrics(size):
    title = f"UDP {size} B flood"
    return (
        Metric(f"udp{size}_kpps", f"{title}, delivered", "kpps", True),
        Metric(f"udp{size}_cpu_us", f"{title}: daemon CPU per delivered packet", "us"),
        Metric(f"udp{size}_loss", f"{title}: loss", "%"),
        Metric(f"udp{size}_socket_loss", f"{title}: of what came through, lost at the receiver's full socket", "%"),
        Metric(f"udp{size}_offered_kpps", f"{title}, offered", "kpps", None, shown=False),
    )


def mixes(bench):
    with bench.traffic.server(bench.link, "dns-serve", bench.endpoint):
        time.sleep(SERVER_START)
        cpu = bench.tunnel.cpu()
        answer = bench.traffic.run(bench.link, bench.seconds, "dns-ask", bench.endpoint, DNS_ASKERS)
        cpu = bench.tunnel.cpu() - cpu
    yield {
        "dns_kqps": answer["count"] / bench.seconds / 1000, "dns_p50": answer["p50"], "dns_p99": answer["p99"],
        "dns_lost": answer["lost"], "dns_cpu_us": per(cpu * 1e6, answer["count"], "DNS"),
    }
    sent, heard, _, cpu = one_way(bench, "voip-listen", "voip-talk", VOIP_STREAMS)
    yield {
        "voip_p50": heard["p50"], "voip_p99": heard["p99"], "voip_jitter": heard["jitter"],
        "voip_loss": 100 * (1 - heard["count"] / sent["sent"]), "voip_cpu_us": per(cpu * 1e6, heard["count"], "VoIP"),
    }


# --- Latency ---

def pingpong(bench):
    with bench.traffic.server(bench.link, "echo-serve", bench.endpoint):
        time.sleep(SERVER_START)
        for size in PAYLOADS:
            cpu = bench.tunnel.cpu()
            answer = bench.traffic.run(bench.link, bench.seconds, "echo-pingpong", bench.endpoint, size)
            cpu = bench.tunnel.cpu() - cpu
            yield {f"rtt{size}_{name}": answer[name] for name in ("p50", "p99", "p999", "lost")} | {
                f"rtt{size}_cpu_us": per(cpu * 1e6, answer["count"], f"ping-pong {size} B")}


def pingpong_metrics(size):
    title = f"ping-pong {size} B"
    return (
        Metric(f"rtt{size}_p50", f"{title}, p50", "us"),
        Metric(f"rtt{size}_p99", f"{title}, p99", "us"),
        Metric(f"rtt{size}_p999", f"{title}, p99.9", "us", shown=size == PAYLOADS[0]),
        Metric(f"rtt{size}_cpu_us", f"{title}: daemon CPU per round trip", "us"),
        Metric(f"rtt{size}_lost", f"{title}: lost", "datagrams", shown=False),
    )


def paced(bench):
    with bench.traffic.server(bench.link, "echo-serve", bench.endpoint):
        time.sleep(SERVER_START)
        for pace in PACES_MS:
            # Seldom pings, but enough of them.
            seconds = bench.seconds * (1 if pace == min(PACES_MS) else 2)
            cpu = bench.tunnel.cpu()
            answer = bench.traffic.run(bench.link, seconds, "echo-paced", bench.endpoint, 64, pace * 1000)
            # The generator listens for a while after its last ping; the daemons are idle then.
            cpu = bench.tunnel.cpu() - cpu
            per(1, answer["count"], f"a ping every {pace} ms")
            yield {f"paced{pace}_{name}": answer[name] for name in ("p50", "p99", "lost")} | {
                f"paced{pace}_cpu": 100 * cpu / seconds}


def paced_metrics(pace):
    title = f"a ping every {pace} ms"
    return (
        Metric(f"paced{pace}_p50", f"{title}, p50", "us"),
        Metric(f"paced{pace}_p99", f"{title}, p99", "us"),
        Metric(f"paced{pace}_cpu", f"{title}: CPU of both daemons, of one core", "%"),
        Metric(f"paced{pace}_lost", f"{title}: lost", "datagrams", shown=False),
    )


def loaded(bench):
    """Pings while the tunnel is full: what the bulk's queues add."""
    # The load begins before the pings and ends after them.
    lead, tail = 0.5, 1.0
    lasting = lead + bench.seconds + tail
    with bench.traffic.server(bench.link, "echo-serve", bench.endpoint):
        with load.iperf_clients(bench.link, [bench.address], lasting, "-P", str(LOADED_STREAMS)) as (client,):
            time.sleep(lead)
            yield pings(bench, "loaded_tcp")
            yield {"loaded_tcp_gbits": load.iperf_answer(client, lasting).gbits}
        flooded = f"{bench.address}:{TRAFFIC_PORT + 1}"
        with bench.traffic.server(bench.link, "flood-count", flooded) as counter:
            time.sleep(SERVER_START)
            words = (bench.traffic.program, "flood-send", flooded, f"{lasting:g}", str(LOADED_FLOOD))
            flooding = subprocess.Popen(bench.link.inside(LEFT, *words), stdout=subprocess.DEVNULL)
            try:
                time.sleep(lead)
                yield pings(bench, "loaded_udp")
            finally:
                flooding.kill()
                flooding.wait()
            arrived = bench.traffic.report(counter, "flood-count")
            yield {"loaded_udp_kpps": per(arrived["received"], arrived["seconds"], "UDP flood") / 1000}


def pings(bench, name):
    answer = bench.traffic.run(bench.link, bench.seconds, "echo-paced", bench.endpoint, 64, LOADED_EVERY_US)
    sent = answer["count"] + answer["lost"]
    per(1, answer["count"], "pings under load")
    return {f"{name}_p50": answer["p50"], f"{name}_p99": answer["p99"], f"{name}_loss": 100 * answer["lost"] / sent}


def loaded_metrics(name, title):
    return (
        Metric(f"{name}_p50", f"ping under {title}, p50", "us"),
        Metric(f"{name}_p99", f"ping under {title}, p99", "us"),
        Metric(f"{name}_loss", f"ping under {title}: lost", "%"),
    )


# --- Rest and handshakes ---

def idle(bench):
    """A tunnel that was used and is no more: before the ten seconds at which the protocol's timers fire."""
    time.sleep(IDLE_SETTLE)
    interfaces = [interface for interface in bench.tunnel.interfaces if interface.daemon]
    if not interfaces:
        return
    before, begun = [interface.threads() for interface in interfaces], time.monotonic()
    time.sleep(IDLE_SECONDS)
    after, elapsed = [interface.threads() for interface in interfaces], time.monotonic() - begun
    seconds, switches = (sum(a[n] - b[n] for a, b in zip(after, before)) for n in range(2))
    yield {"idle_cpu": 100 * seconds / elapsed, "idle_wakeups": switches / elapsed}


def handshakes(bench):
    cpu = bench.tunnel.cpu()
    seen = bench.settings.initiations.send(
        bench.link, f"{bench.link.outer(LEFT)}:{PORT}", bench.seconds, HANDSHAKES_WINDOW)
    cpu = bench.tunnel.cpu() - cpu
    yield {
        "handshakes": per(seen["answered"], seen["seconds"], "handshakes"),
        "handshakes_cookies": 100 * seen["cookies"] / seen["answered"],
        "handshakes_lost": seen["lost"],
        "handshakes_cpu_us": cpu * 1e6 / seen["answered"],
    }


def strangers(bench):
    """TCP beside floods of those who know no key of ours, and beside the same floods at a port where nobody listens.

    An implementation may starve or end under any of them, which is a result like another: the rest is measured all the same.
    """
    for suffix, back in (("", False), ("r", True)):
        yield attempt([f"strangers_none{suffix}"], lambda: [streamed(bench, back)])
    for suffix, back in (("", False), ("r", True)):
        for kind in ("wrong-mac1", "unknown-index"):
            names = [f"strangers_{kind.split('-')[0]}{what}{suffix}" for what in ("", "_kept", "_kpps", "_answered")]
            yield attempt(names, lambda: compared(bench, kind, back))
    left = bench.tunnel.interfaces[0]
    memory = left.peak_memory_mb()
    yield attempt(["strangers_right", "strangers_right_kpps"], lambda: beside(
        bench, "right-mac1", PORT, False, SPOOFED_RATE, SPOOFED_SOURCES)[:2])
    yield attempt(["strangers_newcomer"], lambda: [newcomer(bench)])
    yield attempt(["strangers_memory"], lambda: [left.peak_memory_mb() - memory])


def attempt(names, measure):
    """Figures by their names; if they cannot be had, the failure by the names of all."""
    try:
        return dict(zip(names, measure(), strict=True))
    except Failure as failure:
        return dict.fromkeys(names, failure)


def streamed(bench, back, flooded=None):
    """The goodput of a stream that was there before what is beside it, which begins with the context `flooded`."""
    # What an earlier flood has broken is to be whole again.
    bench.tunnel.connect()
    with bench.traffic.stream(bench.link, bench.endpoint, back) as stream, flooded or contextlib.nullcontext() as flood:
        time.sleep(FLOOD_START)
        gbits = stream.gbits(bench.seconds)
        if not flood:
            return gbits
        flood.check()
        report = flood.report(FLOOD_REST + load.GRACE)
        return gbits, report["sent"] / report["seconds"] / 1000, report["answered"]


def beside(bench, kind, port, back, per_second=STRANGERS_RATE, sources=0):
    """The goodput meanwhile, what the strangers sent a second, in thousands, and what they were answered."""
    seconds = FLOOD_START + bench.seconds + FLOOD_REST
    return streamed(bench, back, flooding(bench, kind, port, seconds, per_second, sources))


def compared(bench, kind, back):
    """The goodput beside a flood, that of the goodput beside the same at a closed port, and the flood."""
    closed, *_ = beside(bench, kind, CLOSED_PORT, back)
    if not closed:
        raise Failure("nothing arrives beside a flood at a closed port")
    gbits, kpps, answered = beside(bench, kind, PORT, back)
    return gbits, 100 * gbits / closed, kpps, answered


def newcomer(bench):
    bench.tunnel.connect()
    new = bench.tunnel.newcomer()
    with flooding(bench, "right-mac1", PORT, FLOOD_LIMIT, SPOOFED_RATE, SPOOFED_SOURCES) as flood:
        time.sleep(FLOOD_START)
        took = bench.tunnel.first_answer(new, NEWCOMER_LIMIT)
        flood.check()
        return took


def flooding(bench, kind, port, seconds, per_second, sources):
    left = bench.tunnel.interfaces[0]
    address = f"{bench.link.outer(LEFT)}:{port}"
    return load.strangers(
        bench.link, bench.settings.strangers, kind, left.public_key, address, seconds, per_second, sources)


def stranger_metrics(kind, title):
    name = f"strangers_{kind}"
    return tuple(metric for suffix, way in (("", "out"), ("r", "in")) for metric in (
        Metric(f"{name}{suffix}", f"TCP 1 stream {way}, beside {STRANGERS_RATE // 1000},000/s of {title}", "Gbit/s", True),
        Metric(f"{name}_kept{suffix}", f"{title}, {way}: of that beside the same at a closed port", "%", True),
        Metric(f"{name}_kpps{suffix}", f"{title}, {way}: what the strangers could send", "kpps", None),
        Metric(f"{name}_answered{suffix}", f"{title}, {way}: answers to the strangers", "datagrams"),
    ))


def trouble(bench):
    """TCP over a network that loses, doubles, delays, reorders and spoils, and a transfer over the same network when it is well."""
    for number, (name, odds) in enumerate(TROUBLES.items()):
        port = RELAY_PORT + number
        target = f"{bench.link.outer(RIGHT)}:{PORT + 1}"
        with bench.traffic.server(bench.link, "relay", f"0.0.0.0:{port}", target, RELAY_SEED, *odds, RELAY_DELAY_US):
            time.sleep(SERVER_START)
            bench.tunnel.lead(port)
            bench.tunnel.connect()
            yield {f"trouble_{name}": bench.tcp().gbits, f"trouble_{name}r": bench.tcp("-R").gbits}


def mixed(bench):
    yield {"mixed_tcp1": bench.tcp().gbits}
    yield {"mixed_tcp1r": bench.tcp("-R").gbits}
    with bench.traffic.server(bench.link, "echo-serve", bench.endpoint):
        time.sleep(SERVER_START)
        answer = bench.traffic.run(bench.link, bench.seconds, "echo-pingpong", bench.endpoint, 64)
    yield {"mixed_rtt_p50": answer["p50"], "mixed_rtt_p99": answer["p99"]}


# --- Sidecars ---

# Behind every forward, and what the left's own interface reaches.
TARGET = "192.168.241.2"


def sidecar(bench):
    near = bench.tunnel.interfaces[0]
    for name, words in (("sidecar_tcp1", ()), ("sidecar_tcp1r", ("-R",))):
        cpu = near.cpu()
        moved = load.iperf_by_way_of(bench.link, bench.address, TARGET, bench.seconds, *words)
        yield {name: moved.gbits, f"{name}_cpu_per_gb": per(near.cpu() - cpu, moved.gigabytes, name)}


def connections(bench):
    near = bench.tunnel.interfaces[0]
    with bench.traffic.server(bench.link, "hold-serve", f"{TARGET}:{TRAFFIC_PORT}"):
        time.sleep(SERVER_START)
        before = near.peak_memory_mb()
        held = bench.traffic.run(
            bench.link, CONNECTIONS_SECONDS, "hold-open", f"{bench.address}:{TRAFFIC_PORT}", CONNECTIONS)
    after = near.peak_memory_mb()
    yield {
        "connections": held["completed"], "connections_opening": held["opening"],
        "connections_carrying": held["carrying"], "connections_memory": after,
        "connections_memory_each": 1000 * (after - before) / CONNECTIONS,
    }


MEMORY = "memory_mb"
# The seconds that starting iperf3 or a generator takes beside its own.
START = 0.4
# Two namespaces, two daemons, a handshake; and their end.
SET_UP = 0.8
# Turns of a round where the host's moods show, of seconds and of minutes ...
OFTEN = {"turns": 9, "parts": 9}
# ... where besides some that are compared differ by less than a turn from the next one ...
MOST = {"turns": 18, "parts": 9}
# ... and where there is too little to see in a third of a second.
RARER = {"turns": 3, "parts": 3}

GROUPS = {group.name: group for group in (
    Group("tcp", "TCP", transfer_metrics(TCP), tcp, lambda s, quick: SET_UP + (6 if quick else 9) * (s + START)),
    Group("udp", "UDP floods", tuple(m for size in FLOODS for m in flood_metrics(size)), floods,
          lambda s, _: SET_UP + len(FLOODS) * (s + START), **OFTEN),
    Group("mixes", "DNS-like and VoIP-like", (
        Metric("dns_kqps", f"DNS-like, {DNS_ASKERS} askers, answered", "k/s", True),
        Metric("dns_p50", "DNS-like, p50", "us"),
        Metric("dns_p99", "DNS-like, p99", "us"),
        Metric("dns_cpu_us", "DNS-like: daemon CPU per answer", "us"),
        Metric("dns_lost", "DNS-like: lost", "questions", shown=False),
        Metric("voip_p50", f"VoIP-like, {VOIP_STREAMS} calls, one-way delay p50", "us"),
        Metric("voip_p99", "VoIP-like, one-way delay p99", "us"),
        Metric("voip_jitter", "VoIP-like, jitter", "us"),
        Metric("voip_loss", "VoIP-like: loss", "%"),
        Metric("voip_cpu_us", "VoIP-like: daemon CPU per packet", "us"),
    ), mixes, lambda s, _: SET_UP + 2 * (s + START)),
    Group("pingpong", "Ping-pong, nothing else under way", tuple(m for s in PAYLOADS for m in pingpong_metrics(s)),
          pingpong, lambda s, _: SET_UP + len(PAYLOADS) * (s + 0.2), **MOST),
    Group("paced", "Paced pings", tuple(m for pace in PACES_MS for m in paced_metrics(pace)), paced,
          lambda s, _: SET_UP + 3 * s + len(PACES_MS) * START, **RARER),
    Group("loaded", "Latency under load", (
        *loaded_metrics("loaded_tcp", f"TCP, {LOADED_STREAMS} streams"),
        Metric("loaded_tcp_gbits", "the TCP meanwhile", "Gbit/s", True),
        *loaded_metrics("loaded_udp", f"a UDP {LOADED_FLOOD} B flood"),
        Metric("loaded_udp_kpps", "the flood meanwhile, delivered", "kpps", True),
    ), loaded, lambda s, _: SET_UP + 2 * (s + 1.5), **RARER),
    Group("unsegmented", "TCP, no UDP segmentation on the veth",
          transfer_metrics(SAVED_WITHOUT_SEGMENTATION, "unsegmented_", ", no UDP segmentation"), unsegmented,
          lambda s, _: SET_UP + len(SAVED_WITHOUT_SEGMENTATION) * (s + START), "unsegmented"),
    Group("peers", "Many peers, a TCP stream each", (
        Metric("peers", "all streams", "Gbit/s", True),
        Metric("peers_smallest", "smallest stream over largest", "", True),
        Metric("peers_hub_cpu_per_gb", "hub's daemon CPU", "s/GB"),
        Metric("peers_system_per_gb", "system CPU", "s/GB"),
    ), peers, lambda s, _: 3 * SET_UP + s, "star"),
    Group("handshakes", "Handshakes answered", (
        Metric("handshakes", f"answered, {HANDSHAKES_WINDOW} under way", "per s", True),
        Metric("handshakes_cpu_us", "responder's CPU per handshake", "us"),
        Metric("handshakes_cookies", "made to show a cookie first", "%", None),
        Metric("handshakes_lost", "not answered", "initiations", None, shown=False),
    ), handshakes, lambda s, _: SET_UP + s, "responder", bare=False),
    Group("idle", "At rest", (
        Metric("idle_cpu", "CPU of both daemons, of one core", "%"),
        Metric("idle_wakeups", "wake-ups of both daemons", "per s"),
    ), idle, lambda *_: SET_UP + IDLE_SETTLE + IDLE_SECONDS, bare=False),
    Group("sidecar", "Through a TCP forward, adit's TUN at the far end; without a forward for comparison", (
        Metric("sidecar_tcp1", "TCP 1 stream into the tunnel", "Gbit/s", True),
        Metric("sidecar_tcp1_cpu_per_gb", "TCP 1 stream into the tunnel: near end's CPU", "s/GB"),
        Metric("sidecar_tcp1r", "TCP 1 stream out of the tunnel", "Gbit/s", True),
        Metric("sidecar_tcp1r_cpu_per_gb", "TCP 1 stream out of the tunnel: near end's CPU", "s/GB"),
    ), sidecar, lambda s, _: SET_UP + 2 * (s + START), "forwarded", bare=False),
    Group("connections", f"{CONNECTIONS} connections at once through the same", (
        Metric("connections", "completed", "connections", True),
        Metric("connections_opening", "opening them", "s"),
        Metric("connections_carrying", "16 KiB there and back on each", "s"),
        Metric("connections_memory", "near end's peak memory with them", "MB"),
        Metric("connections_memory_each", "near end's peak memory for each of them", "kB"),
    ), connections, lambda *_: SET_UP + 2, "forwarded", bare=False),
    Group("strangers", "Floods of strangers", (
        Metric("strangers_none", "TCP 1 stream out, no strangers", "Gbit/s", True),
        Metric("strangers_noner", "TCP 1 stream in, no strangers", "Gbit/s", True),
        *stranger_metrics("wrong", "a wrong mac1"),
        *stranger_metrics("unknown", "an unknown index"),
        Metric("strangers_right", f"TCP 1 stream out, beside {SPOOFED_RATE // 1000},000/s of a right mac1", "Gbit/s", True),
        Metric("strangers_right_kpps", "a right mac1, out: what the strangers could send", "kpps", None),
        Metric("strangers_newcomer", "a new peer's first answer beside them", "s"),
        Metric("strangers_memory", "the daemon's peak memory beside them, above before", "MB"),
    ), strangers, lambda s, _: SET_UP + 2 * (s + START) + 9 * (s + START + FLOOD_START + FLOOD_REST) + NEWCOMER_LIMIT / 2, bare=False),
    Group("trouble", f"A bad network, by a relay that takes {RELAY_DELAY_US // 1000} ms each way", (
        Metric("trouble_none", "TCP 1 stream out, nothing amiss", "Gbit/s", True),
        Metric("trouble_noner", "TCP 1 stream in, nothing amiss", "Gbit/s", True),
        Metric("trouble_loss", "TCP 1 stream out, 1 % lost", "Gbit/s", True),
        Metric("trouble_lossr", "TCP 1 stream in, 1 % lost", "Gbit/s", True),
        Metric("trouble_all", "TCP 1 stream out, 1 % each lost, doubled, reordered and spoilt", "Gbit/s", True),
        Metric("trouble_allr", "TCP 1 stream in, 1 % each lost, doubled, reordered and spoilt", "Gbit/s", True),
    ), trouble, lambda s, _: SET_UP + 2 * len(TROUBLES) * (s + START), bare=False),
    Group("mixed", "Mixed pairs: adit on the left, the column's on the right", (
        Metric("mixed_tcp1", "TCP 1 stream, adit sends", "Gbit/s", True),
        Metric("mixed_tcp1r", "TCP 1 stream, adit receives", "Gbit/s", True),
        Metric("mixed_rtt_p50", "ping-pong 64 B, p50", "us"),
        Metric("mixed_rtt_p99", "ping-pong 64 B, p99", "us"),
    ), mixed, lambda s, _: SET_UP + 3 * (s + START), "mixed", bare=False),
)}
