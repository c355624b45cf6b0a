"""The load: iperf3, the generators of `traffic.rs`, and the examples `handshake_load` and `stranger_flood`."""

import contextlib
import json
import math
import pathlib
import subprocess
import time
from dataclasses import dataclass

from link import Failure, run
from tunnel import LEFT, RIGHT

# What a generator may need beyond the seconds it was given.
GRACE = 20.0
# Seconds even on a slow machine; on one that is busy with other things, some more.
BUILD_LIMIT = 300.0


def parse(text, what):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Failure(f"{what} printed no JSON: {text.strip()[:200]!r}") from error


@contextlib.contextmanager
def server(link, side, *words, ready=None):
    """A process that ends with the block; if `ready` is given, once it has printed that."""
    process = subprocess.Popen(link.inside(side, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    try:
        while ready and ready not in (line := process.stdout.readline()):
            if not line:
                raise Failure(f"{words[0]} does not start")
        yield process
    finally:
        process.kill()
        process.wait()
        # What it was not there to read is still in the way.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


@dataclass
class Transfer:
    """What iperf3 says of a transfer, as the receivers counted."""

    gigabytes: float
    gbits: float


def iperf_client(link, address, seconds, words):
    # It takes whole seconds, and none of them for ever.
    words = ("iperf3", "-J", "-c", address, "-t", str(math.ceil(seconds)), *words)
    return subprocess.Popen(link.inside(LEFT, *words),
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def iperf_answer(client, seconds):
    try:
        output, _ = client.communicate(timeout=seconds + GRACE)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"iperf3 did not end within {seconds + GRACE:.0f} s") from late
    answer = parse(output, "iperf3")
    if "error" in answer:
        raise Failure(f"iperf3: {answer['error']}")
    sums = [answer["end"][name] for name in ("sum_received", "sum_received_bidir_reverse") if name in answer["end"]]
    return Transfer(sum(s["bytes"] for s in sums) / 1e9, sum(s["bits_per_second"] for s in sums) / 1e9)


@contextlib.contextmanager
def iperf_clients(link, addresses, seconds, *words):
    """One client to each address, on their way; they are killed if the block fails."""
    clients = []
    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(server(link, RIGHT, "iperf3", "-s", "-1", "--forceflush", "-B", address,
                                       ready="listening"))
        try:
            clients += [iperf_client(link, address, seconds, words) for address in addresses]
            yield clients
        finally:
            for client in clients:
                client.kill()
                client.wait()
                client.stdout.close()


def iperf(link, address, seconds, *words):
    with iperf_clients(link, [address], seconds, *words) as (client,):
        return iperf_answer(client, seconds)


def iperf_by_way_of(link, entrance, address, seconds, *words):
    """A transfer to a server at one address by a client that connects to another, which leads there."""
    with server(link, RIGHT, "iperf3", "-s", "-1", "--forceflush", "-B", address, ready="listening"):
        client = iperf_client(link, entrance, seconds, words)
        try:
            return iperf_answer(client, seconds)
        finally:
            client.kill()
            client.wait()
            client.stdout.close()


class Traffic:
    """`traffic.rs`, compiled."""

    def __init__(self, folder):
        self.program = str(folder / "traffic")
        sources = pathlib.Path(__file__).parent
        run("rustc", "--edition", "2024", "-O", "-o", self.program, str(sources / "traffic.rs"), limit=BUILD_LIMIT)

    def run(self, link, seconds, verb, address, *words):
        """What a generator on the left says after so many seconds."""
        words = (self.program, verb, address, f"{seconds:g}", *map(str, words))
        return parse(run(*link.inside(LEFT, *words), limit=seconds + GRACE), verb)

    def server(self, link, verb, *words):
        return server(link, RIGHT, self.program, verb, *map(str, words))

    @contextlib.contextmanager
    def stream(self, link, address, back=False):
        """A TCP stream from the left to the right, or back, until the block ends. Gives its `Stream`."""
        left, right = ("receive", "send") if back else ("send", "receive")
        with server(link, RIGHT, self.program, "stream-listen", address, right, ready="listening") as there:
            with server(link, LEFT, self.program, "stream-open", address, left, ready="connected") as here:
                yield Stream(here if back else there)

    @staticmethod
    def report(process, verb):
        """What a counting server says when it is told that all has arrived."""
        try:
            output, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"{verb} does not report") from late
        return parse(output, verb)


class Stream:
    """The receiving end of a stream that flows."""

    def __init__(self, receiver):
        self.receiver = receiver

    def count(self):
        try:
            self.receiver.stdin.write("\n")
            self.receiver.stdin.flush()
        except BrokenPipeError as gone:
            raise Failure("the stream's receiver has ended") from gone
        return parse(self.receiver.stdout.readline(), "the stream's receiver")

    def gbits(self, seconds):
        """The goodput of the next so many seconds."""
        before = self.count()
        time.sleep(seconds)
        after = self.count()
        return 8 * (after["bytes"] - before["bytes"]) / (after["seconds"] - before["seconds"]) / 1e9


class Initiations:
    """Genuine initiations to one responder, made once for all runs."""

    INITIATORS, EACH = 512, 32

    def __init__(self, program, folder):
        self.program, self.file = program, folder / "initiations"
        lines = run(program, "create", str(self.file), str(self.INITIATORS), str(self.EACH), limit=BUILD_LIMIT).split()
        self.responder_key, self.initiators = lines[0], lines[1:]

    def send(self, link, address, seconds, window):
        words = (self.program, "send", str(self.file), str(self.INITIATORS), address, f"{seconds:g}", str(window))
        return parse(run(*link.inside(RIGHT, *words), limit=seconds + GRACE), "handshake_load")


class Flood:
    """`stranger_flood` on its way from the right."""

    def __init__(self, process):
        self.process = process

    def check(self):
        """Fails if it has ended: what was measured since was not measured beside it."""
        if self.process.poll() is not None:
            raise Failure(f"the flood ended before what was measured beside it: {self.report(GRACE)}")

    def report(self, limit):
        """What it says at its end, which is to come within so many seconds."""
        try:
            output, errors = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"stranger_flood did not end within {limit:.0f} s") from late
        if self.process.returncode != 0:
            raise Failure(f"stranger_flood: {errors.strip() or f'exit code {self.process.returncode}'}")
        return parse(output, "stranger_flood")


@contextlib.contextmanager
def strangers(link, program, kind, key, address, seconds, per_second, sources):
    """A flood from the right, which ends with the block if not before."""
    words = (program, kind, key, address, f"{seconds:g}", str(per_second), str(sources))
    process = subprocess.Popen(link.inside(RIGHT, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Flood(process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
