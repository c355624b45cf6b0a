#!/usr/bin/env python3
"""Implementations of WireGuard side by side, end to end: adit (also with its spinning off), wireguard-go, gotatun,
boringtun, the kernel's where there is one, and the bare link as the bound of what there is to reach.

Two network namespaces joined by a veth pair; the same implementation at both ends; the same MTU and tools for all. Rounds
are interleaved group by group, in an order that rotates, because a machine's speed drifts; medians are printed with
minimum and maximum. Compare figures of one run only. Nothing outside of its own namespaces is touched.

Printed as tables, and written to --out: figures.csv with every single figure, report.html with bar charts, and the
daemons' logs. README.md beside this file says what each group measures and how far to trust it.
"""

import argparse
import datetime
import os
import pathlib
import platform
import shutil
import signal
import sys
import time
from dataclasses import replace

# Run by root in somebody's checkout: nothing is left beside the sources.
sys.dont_write_bytecode = True

import load
import tunnel
from goals import ADIT, ONETUN
from link import OUTER_MTU, Failure, run, sweep
from measures import GROUPS, MEMORY, Bench, Settings
from report import number, page, text, verdicts
from results import METRICS, Failed, Results

ROOT = pathlib.Path(__file__).resolve().parents[2]
HANDSHAKE_LOAD = ROOT / "target/release/examples/handshake_load"
STRANGER_FLOOD = ROOT / "target/release/examples/stranger_flood"
# What scripts/fetch-wireguard-go.sh fetches, which goes before the one in PATH.
WIREGUARD_GO = ROOT / "target/wireguard-go/usr/bin/wireguard-go"
TOOLS = ("ip", "wg", "ping", "iperf3", "ethtool", "unshare", "rustc")
# Where spinning makes no difference, the variant without it would cost time and say nothing.
NO_SPIN_GROUPS = ("mixes", "pingpong", "paced", "loaded")
# Stopped by Ctrl-C, as a shell says it.
INTERRUPTED = 130


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = ",".join(GROUPS)
    parser.add_argument("--quick", action="store_true", help="one short round: does it work, roughly")
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--seconds", type=float, help="of each test: 3, or 1 with --quick")
    parser.add_argument("--metrics", help=f"groups to measure, of {groups} (all but mixed)")
    parser.add_argument("--mixed", action="store_true", help="also mixed pairs: adit against each of the others")
    parser.add_argument("--only", help="implementations to measure, by name (all that are found)")
    parser.add_argument("--adit", action="append", default=[], metavar="[NAME=]PATH",
                        help="the program (target/release/adit); repeat it to compare builds")
    parser.add_argument("--wireguard-go", metavar="PATH",
                        help="another one than scripts/fetch-wireguard-go.sh fetched, or than that in PATH")
    parser.add_argument("--no-udp-segmentation", action="store_true",
                        help="everything as on a network card without UDP segmentation")
    parser.add_argument("--mtu", type=int, default=1420, help="of the tunnel (1420)")
    parser.add_argument("--peers", type=int, default=8, help="of the group peers (8)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/e2e", help="where results go (target/e2e)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if adit misses a floor, or if a step failed")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.seconds = args.seconds or (1.0 if args.quick else 3.0)
    args.explicit = args.metrics is not None
    args.metrics = args.metrics.split(",") if args.explicit else [name for name in GROUPS if name != "mixed"]
    args.metrics += ["mixed"] if args.mixed and "mixed" not in args.metrics else []
    unknown = [name for name in args.metrics if name not in GROUPS]
    if unknown:
        parser.error(f"unknown group: {', '.join(unknown)} (of {groups})")
    return args


def say(words):
    print(f"bench: {words}", file=sys.stderr, flush=True)


def give_up(words):
    say(words)
    sys.exit(2)


def builds_of_adit(args):
    """Programs by their names, at least one."""
    return dict((given.rpartition("=")[0] or (f"adit-{n}" if n > 1 else ADIT), given.rpartition("=")[2])
                for n, given in enumerate(args.adit or [str(ROOT / "target/release/adit")], 1))


def implementations(args):
    """Those asked for that are here; says which are not."""
    builds = builds_of_adit(args)
    first, path = next(iter(builds.items()))
    known = [tunnel.Implementation(first, (path, "-f"))]
    known.append(tunnel.Implementation(f"{first}-nospin", (path, "-f"), {"ADIT_SPIN_US": "0"}))
    known += [tunnel.Implementation(name, (path, "-f")) for name, path in list(builds.items())[1:]]
    rust_words = ("-f", "--disable-drop-privileges", "-v", "error")
    for name, program, words in (
        ("wireguard-go", args.wireguard_go or shutil.which(WIREGUARD_GO) or shutil.which("wireguard-go"), ("-f",)),
        ("gotatun", shutil.which("gotatun"), rust_words),
        ("boringtun", shutil.which("boringtun-cli"), rust_words),
    ):
        known.append(tunnel.Implementation(name, (program or "", *words)))
    known += [tunnel.Implementation(f"{name}-proxy", (path,), forward=tunnel.by_adit) for name, path in builds.items()]
    known.append(tunnel.Implementation(ONETUN, (shutil.which("onetun") or "",), forward=tunnel.by_onetun))
    known.append(tunnel.Implementation("kernel"))
    known.append(tunnel.Implementation("veth", is_tunnel=False))
    asked = args.only.split(",") if args.only else [implementation.name for implementation in known]
    strange = set(asked) - {implementation.name for implementation in known}
    if strange:
        give_up(f"unknown: {', '.join(sorted(strange))} (of {', '.join(i.name for i in known)})")
    chosen = []
    for implementation in known:
        if implementation.name not in asked:
            continue
        if implementation.is_process:
            here = shutil.which(implementation.command[0]) if implementation.command[0] else None
        else:
            here = not implementation.is_tunnel or tunnel.has_kernel_module()
        if here:
            chosen.append(implementation)
        else:
            say(f"not measured, because it is not installed: {implementation.name}")
    return chosen


def describe(args, chosen, steps):
    processor = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                     platform.machine())
    memory = int(open("/proc/meminfo").readline().split()[1]) / 1e6
    try:
        commit = run("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12").strip()
    except Failure:
        commit = "unknown"
    often = "".join(f"; {group.name} {args.rounds * group.turns} of {group.seconds(args.seconds):.2g} s"
                    for group in groups_of(steps) if group.turns > 1)
    segmentation = ", no UDP segmentation on the veth" if args.no_udp_segmentation else ""
    return [
        ("machine", f"{processor}, {os.cpu_count()} cores, {memory:.0f} GB"),
        ("kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("commit", commit),
        ("command", " ".join(sys.argv)),
        ("method", f"{args.rounds} interleaved rounds, {args.seconds:g} s a test, inner MTU {args.mtu}, "
                   f"outer {OUTER_MTU}{segmentation}{often}"),
        ("measured", "; ".join(f"{i.name}: {version(i)} ({i.command[0]})" for i in chosen if i.is_process)),
        ("load", f"{os.getloadavg()[0]:.2f} before the run"),
    ]


def version(implementation):
    try:
        said = run(implementation.command[0], "--version", limit=5)
    except Failure:
        return "unknown version"
    # Of "boringtun 0.7.1", "wireguard-go v0.0.20220316" and the like, the second word.
    return (said.split() + ["unknown", "version"])[1]


def plan(args, chosen):
    """Steps of a round: group and implementation. Neighbours in time are those that are compared."""
    steps = []
    for name in args.metrics:
        group = replace(GROUPS[name], turns=1, parts=1) if args.quick else GROUPS[name]
        for implementation in chosen:
            wanted = group.bare or implementation.is_tunnel
            if group.topology == "forwarded":
                wanted = implementation.forward or implementation.name == ADIT
            elif implementation.forward:
                wanted = False
            # Nothing is left out that was asked for by name.
            if implementation.environment and not args.explicit:
                wanted = wanted and name in NO_SPIN_GROUPS
            if name == "idle" and not implementation.is_process:
                wanted = False
            if wanted:
                steps.append((group, implementation))
    return steps


def groups_of(steps):
    """Each once, in the order of the steps."""
    return list(dict.fromkeys(group for group, _ in steps))


def turns(steps, number_of_round):
    """Steps of a round as they are done, with the number of the turn. In each turn of a group its implementations begin with
    another one."""
    for group in groups_of(steps):
        of_group = [step for step in steps if step[0] == group]
        for turn in range((number_of_round - 1) * group.turns, number_of_round * group.turns):
            start = turn % len(of_group)
            for _, implementation in of_group[start:] + of_group[:start]:
                yield turn + 1, group, implementation


def measure(settings, results, number_of_round, turn, group, implementation, partner):
    """Does a step and gives a word on it. Whatever goes wrong is a result as well. `turn` counts over all rounds."""
    headline = ""
    bench = None
    try:
        bench = Bench(settings, group, implementation, partner)
        for found in group.measure(bench):
            results.add(turn, implementation.name, group.name, found)
            headline = headline or headline_of(found)
        results.add(number_of_round, implementation.name, group.name, {MEMORY: bench.tunnel.peak_memory_mb(implementation)})
    except Exception as error:
        reason = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
        results.fail(Failed(implementation.name, group.name, turn, " ".join(reason.split())))
        headline = f"failed: {reason}"
    finally:
        if bench:
            bench.close()
    return headline


def headline_of(found):
    metric, value = next((METRICS[key], value) for key, value in found.items())
    said = f"failed: {value}" if isinstance(value, Failure) else f"{number(value)} {metric.unit}"
    return f"{metric.title}: {said}"


def interrupted(*_):
    # Once: what follows is the clean-up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def rounds(args, settings, steps, results, partner):
    def cost(group):
        """Of one turn, in seconds."""
        return group.cost(group.seconds(args.seconds), args.quick)

    total = sum(cost(group) * group.turns for group, _ in steps) * args.rounds
    say(f"{len(steps)} steps, {args.rounds} rounds: about {minutes(total)}")
    begun, done = time.monotonic(), 0.0
    for number_of_round in range(1, args.rounds + 1):
        for turn, group, implementation in turns(steps, number_of_round):
            headline = measure(settings, results, number_of_round, turn, group, implementation, partner)
            done += cost(group)
            left = (total - done) * (time.monotonic() - begun) / done
            say(f"{100 * done / total:3.0f} %, {minutes(left)} left: {group.name}, turn {turn} of "
                f"{args.rounds * group.turns}, {implementation.name}: {headline}")


def minutes(seconds):
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(seconds, 0):.0f} s"


def main():
    args = arguments()
    if os.geteuid() != 0:
        give_up("needs root, for network namespaces and TUN devices; it touches nothing but its own namespaces")
    # Where administrators' tools and cargo's programs lie, also for root by way of sudo.
    os.environ["PATH"] += f":/usr/sbin:/sbin:{pathlib.Path.home() / '.cargo/bin'}"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        give_up(f"not installed: {', '.join(missing)}; scripts/install-tools.sh installs what it needs")
    chosen = implementations(args)
    if not chosen:
        give_up("no implementation was found: `make bench` builds adit, scripts/install-tools.sh installs the others")
    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    sweep()

    args.out.mkdir(parents=True, exist_ok=True)
    for log in args.out.glob("*.log"):
        log.unlink()
    initiations = None
    if "handshakes" in args.metrics:
        if HANDSHAKE_LOAD.exists():
            initiations = load.Initiations(str(HANDSHAKE_LOAD), args.out)
        else:
            say("no handshakes: `cargo build --release --example handshake_load` builds what they need; `make bench` does")
            args.metrics.remove("handshakes")
    if "strangers" in args.metrics and not STRANGER_FLOOD.exists():
        say("no strangers: `cargo build --release --example stranger_flood` builds what they need; `make bench` does")
        args.metrics.remove("strangers")
    first, path = next(iter(builds_of_adit(args).items()))
    far = tunnel.Implementation(first, (path, "-f"))
    settings = Settings(args.seconds, args.quick, args.mtu, args.peers, not args.no_udp_segmentation,
                        load.Traffic(args.out), initiations, str(STRANGER_FLOOD), args.out, far)
    # Programs that forward are no partners: they have no interface.
    partner = next((i for i in chosen if i.command and not i.forward and i.name.startswith(ADIT)), None)
    if "mixed" in args.metrics and not partner:
        give_up("mixed pairs need adit among the measured")

    steps = plan(args, chosen)
    facts = describe(args, chosen, steps)
    stopped = False
    with open(args.out / "figures.csv", "w", newline="") as file:
        results = Results(file, facts)
        results.names = [i.name for i in chosen if any(i is implementation for _, implementation in steps)]
        results.groups = [group.name for group in groups_of(steps)]
        try:
            rounds(args, settings, steps, results, partner)
        except KeyboardInterrupt:
            stopped = True
            say("stopped; what was measured so far:")

    (args.out / "report.html").write_text(page(results, facts))
    print(text(results, facts))
    print(f"\nevery figure: {args.out / 'figures.csv'}\nreport: {args.out / 'report.html'}")
    if stopped:
        sys.exit(INTERRUPTED)
    # What another one does not get done within a step is its own.
    failed = any(not failed.metrics or failed.implementation.startswith(ADIT) for failed in results.failures)
    if args.check and (failed or any(verdict.met_floor is False for verdict in verdicts(results))):
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Failure as failure:
        give_up(failure)
