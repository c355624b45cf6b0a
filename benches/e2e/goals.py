"""What adit is to reach against the others of the same run."""

from dataclasses import dataclass

ADIT, NO_SPIN, BARE, BEST = "adit", "adit-nospin", "veth", "the best"
SIDECAR, ONETUN = "adit-proxy", "onetun"
# Whom BEST is of: the implementations in userspace.
OTHERS = ("wireguard-go", "gotatun", "boringtun")


@dataclass(frozen=True)
class Goal:
    """`floor` and `aim` are factors of the other's figure, or figures themselves where there is no other."""

    metric: str
    us: str
    other: str | None
    floor: float | None
    aim: float | None = None


def goals():
    for name in ("tcp1", "tcp4", "tcp1r"):
        yield Goal(name, ADIT, "gotatun", 2.9, 3.6)
        yield Goal(name, ADIT, "boringtun", 4.5)
        yield Goal(f"{name}_cpu_per_gb", ADIT, "gotatun", 0.35, 0.27)
    yield Goal("udp1372_kpps", ADIT, BEST, 2.3, 3.0)
    yield Goal("udp64_kpps", ADIT, BEST, 1.7, 2.5)
    yield Goal("udp64_cpu_us", ADIT, BEST, 0.5, 0.3)
    yield Goal("rtt64_p50", ADIT, "boringtun", 0.35)
    yield Goal("rtt64_p50", ADIT, BARE, None, 1.0)
    yield Goal("rtt64_p99", ADIT, "boringtun", 0.5)
    yield Goal("rtt64_p99", ADIT, BARE, None, 1.0)
    for quantile in ("p50", "p99"):
        yield Goal(f"rtt64_{quantile}", NO_SPIN, "boringtun", 1.1, 0.95)
    for us in (ADIT, NO_SPIN):
        for pace in (1, 10):
            yield Goal(f"paced{pace}_p50", us, "boringtun", 1.1)
    for quantile in ("p50", "p99"):
        yield Goal(f"loaded_tcp_{quantile}", ADIT, "gotatun", 0.7, 0.4)
    for name in ("tcp1", "tcp4", "tcp1r"):
        yield Goal(f"unsegmented_{name}", ADIT, "gotatun", 1.7, 2.5)
    yield Goal("memory_mb", ADIT, None, 32, 16)
    yield Goal("idle_wakeups", ADIT, None, 0)
    # What `top` shows as 0.0 %.
    yield Goal("idle_cpu", ADIT, None, 0.05)
    yield Goal("tcp_reordered_per_gb", ADIT, BARE, 1.0)
    for kept in ("strangers_wrong_kept", "strangers_wrong_keptr"):
        yield Goal(kept, ADIT, None, 90)
    for answered in ("strangers_wrong_answered", "strangers_wrong_answeredr"):
        yield Goal(answered, ADIT, None, 0)
    yield Goal("strangers_newcomer", ADIT, None, 10)
    yield Goal("strangers_memory", ADIT, None, 32)
    yield Goal("sidecar_tcp1", SIDECAR, ONETUN, 2.0)
    yield Goal("sidecar_tcp1", SIDECAR, ADIT, 0.35, 0.6)
    yield Goal("connections", SIDECAR, None, 1000)


@dataclass(frozen=True)
class Verdict:
    """A goal looked at. `met_floor` and `met_aim` are None where there is none, or nothing was measured.

    `failed` is whether ours could not be measured in one round or more: then no goal is met, whatever the others say.
    """

    goal: Goal
    ours: float | None
    other: str
    theirs: float | None
    ratio: float | None
    met_floor: bool | None
    met_aim: bool | None
    failed: bool = False

    def __str__(self):
        if self.failed:
            return "FAILED"
        if self.ours is None or (self.goal.other and self.theirs is None):
            return "not measured"
        if self.met_aim:
            return "aim met"
        if self.met_floor is None:
            return "aim missed"
        return "met" if self.met_floor else "MISSED"


def judge(goal, metric, median, failed=False):
    """`median(implementation, metric)` is None for what was not measured."""
    ours, other, theirs, ratio = median(goal.us, goal.metric), goal.other or "", None, None
    if goal.other == BEST:
        figures = {name: median(name, goal.metric) for name in OTHERS}
        figures = {name: figure for name, figure in figures.items() if figure is not None}
        if figures:
            other = (max if metric.more else min)(figures, key=figures.get)
            theirs = figures[other]
    elif goal.other:
        theirs = median(goal.other, goal.metric)
    compared = ours
    if goal.other:
        if ours is not None and theirs is not None:
            ratio = ours / theirs if theirs else 1.0 if not ours else float("inf")
        compared = ratio

    def met(bound):
        if bound is None:
            return None
        if failed:
            return False
        if compared is None:
            return None
        return compared >= bound if metric.more else compared <= bound

    return Verdict(goal, ours, other, theirs, ratio, met(goal.floor), met(goal.aim), failed)
