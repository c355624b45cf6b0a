"""The figures of a run: every single one in a CSV file as it comes, and the medians that the report shows."""

import csv
import math
import statistics
from dataclasses import dataclass

from link import Failure
from measures import GROUPS, MEMORY, Metric

# The most that a daemon had resident in a whole round, beside what it had in each group.
PEAK = Metric(MEMORY, "peak memory of a daemon, all groups", "MB")
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group.metrics} | {MEMORY: PEAK}


@dataclass(frozen=True)
class Failed:
    """Why a group gave no figures for an implementation in a turn: for these metrics, or for all that had not come."""

    implementation: str
    group: str
    turn: int
    reason: str
    metrics: tuple = ()

    def __str__(self):
        what = f" ({', '.join(self.metrics)})" if self.metrics else ""
        return f"{self.implementation}, {self.group}, turn {self.turn}{what}: {self.reason}"


class Results:
    def __init__(self, file, facts):
        self.figures, self.failures, self.names, self.groups = {}, [], [], []
        self.file = file
        for key, value in facts:
            file.write(f"# {key}: {value}\n")
        self.writer = csv.writer(file)
        self.writer.writerow(["round", "implementation", "group", "metric", "unit", "value"])

    def add(self, number, name, group, found):
        """Figures, and failures in place of figures: of several metrics, if they have the same."""
        for failure in dict.fromkeys(value for value in found.values() if isinstance(value, Failure)):
            metrics = tuple(key for key, value in found.items() if value is failure)
            self.fail(Failed(name, group, number, " ".join(str(failure).split()), metrics))
        for key, value in found.items():
            if isinstance(value, Failure) or math.isnan(value):
                continue
            self.writer.writerow([number, name, group, key, METRICS[key].unit, round(value, 4)])
            rounds = self.figures.setdefault((name, key), {})
            # Of what comes from several groups of a round, which is the peak memory, the largest counts.
            rounds[number] = max(value, rounds.get(number, value))
        self.file.flush()

    def fail(self, failed):
        self.failures.append(failed)
        self.file.write(f"# failed: {failed}\n")

    def values(self, name, metric):
        return list(self.figures.get((name, metric), {}).values())

    def median(self, name, metric):
        values = self.values(name, metric)
        return statistics.median(values) if values else None

    def missing(self, name, group, metric):
        """The numbers, from 1, of the failures that are why an implementation lacks figures of a metric."""
        have = self.figures.get((name, metric), {})
        return [number for number, failed in enumerate(self.failures, 1)
                if (failed.implementation, failed.group) == (name, group)
                and (metric in failed.metrics or not failed.metrics and failed.turn not in have)]
