"""The figures of a run: every single one in a CSV file as it comes, and the medians that the report shows."""

import csv
import math
import statistics
from dataclasses import dataclass

from measures import GROUPS, MEMORY, Metric

# The most that a daemon had resident in a whole round, beside what it had in each group.
PEAK = Metric(MEMORY, "peak memory of a daemon, all groups", "MB")
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group.metrics} | {MEMORY: PEAK}


@dataclass(frozen=True)
class Failed:
    """Why a group gave no figures for an implementation in a round."""

    implementation: str
    group: str
    round: int
    reason: str


class Results:
    def __init__(self, file, facts):
        self.figures, self.failures, self.names, self.groups = {}, [], [], []
        self.file = file
        for key, value in facts:
            file.write(f"# {key}: {value}\n")
        self.writer = csv.writer(file)
        self.writer.writerow(["round", "implementation", "group", "metric", "unit", "value"])

    def add(self, number, name, group, found):
        for key, value in found.items():
            if math.isnan(value):
                continue
            self.writer.writerow([number, name, group, key, METRICS[key].unit, round(value, 4)])
            rounds = self.figures.setdefault((name, key), {})
            # Of what comes from several groups of a round, which is the peak memory, the largest counts.
            rounds[number] = max(value, rounds.get(number, value))
        self.file.flush()

    def fail(self, failed):
        self.failures.append(failed)
        self.file.write(f"# failed: {failed.implementation}, {failed.group}, round {failed.round}: {failed.reason}\n")

    def values(self, name, metric):
        return list(self.figures.get((name, metric), {}).values())

    def median(self, name, metric):
        values = self.values(name, metric)
        return statistics.median(values) if values else None

    def failure(self, name, group):
        """The number, from 1, of the first failure of an implementation in a group, or None."""
        for number, failed in enumerate(self.failures, 1):
            if (failed.implementation, failed.group) == (name, group):
                return number
        return None
