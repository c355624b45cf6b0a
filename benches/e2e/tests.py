#!/usr/bin/env python3
"""The benchmark's own tests: what becomes of figures that cannot be had, and the stream and the flood over loopback.

tests.py STRANGER_FLOOD, without privileges; `tests/examples.rs` runs them.
"""

import io
import pathlib
import socket
import sys
import tempfile
import time
import types
import unittest
from unittest import mock

sys.dont_write_bytecode = True

import load
import measures
import report
import run
import tunnel
from goals import ADIT
from link import Failure
from results import Failed, Results

STRANGER_FLOOD = sys.argv.pop(1)
TOWARDS, KEY = "127.0.0.1:9", "A" * 43 + "="


class Here:
    """A link that is this host."""

    @staticmethod
    def inside(_side, *words):
        return list(words)


def results(names=(ADIT, "other")):
    made = Results(io.StringIO(), [])
    made.names, made.groups = list(names), ["strangers"]
    return made


def row(made, title):
    """The cells of a metric in the table."""
    line = next(line for line in report.text(made, []).splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


class FiguresThatCannotBeHad(unittest.TestCase):
    def test_a_failure_takes_the_place_of_the_figures_it_is_of(self):
        made = results()
        made.add(1, ADIT, "strangers", {"strangers_none": 3.0, "strangers_newcomer": 5.0})
        why = Failure("no answer\nwithin 20 s")
        made.add(1, "other", "strangers", {"strangers_none": 0.0, "strangers_newcomer": why, "strangers_memory": why})
        made.add(2, "other", "strangers", {"strangers_newcomer": 7.0})
        self.assertEqual(row(made, "TCP 1 stream out, no strangers"), ["3.00", "0"], "nothing at all is a figure")
        self.assertEqual(row(made, "a new peer's first answer"), ["5.00", "7.00 [1]"])
        self.assertEqual(row(made, "the daemon's peak memory"), ["-", "failed [1]"])
        said = "other, strangers, turn 1 (strangers_newcomer, strangers_memory): no answer within 20 s"
        self.assertIn(f"# failed: {said}\n", made.file.getvalue())
        self.assertIn("1,other,strangers,strangers_none,Gbit/s,0.0", made.file.getvalue())
        self.assertIn(f"[1] {said}", report.text(made, []))
        page = report.page(made, [])
        self.assertIn("failed [1]</text>", page, "in the place of a bar")
        self.assertIn(said, page)

    def test_a_step_that_fails_lacks_what_had_not_come(self):
        made = results()
        made.add(1, "other", "strangers", {"strangers_none": 1.0})
        made.fail(Failed("other", "strangers", 1, "ended with 1"))
        made.fail(Failed("other", "strangers", 2, "ended with 2"))
        self.assertEqual(row(made, "TCP 1 stream out, no strangers"), ["-", "1.00 [2]"])
        self.assertEqual(row(made, "a new peer's first answer"), ["-", "failed [1, 2]"])

    def test_a_goal_is_not_met_where_a_round_failed(self):
        made = results()
        made.add(1, ADIT, "strangers", {"strangers_newcomer": 5.0})
        verdict = lambda: next(v for v in report.verdicts(made) if v.goal.metric == "strangers_newcomer")
        self.assertEqual((str(verdict()), verdict().met_floor), ("met", True))
        made.add(2, ADIT, "strangers", {"strangers_newcomer": Failure("no answer")})
        self.assertEqual((str(verdict()), verdict().met_floor), ("FAILED", False))

    def test_strangers_go_on_after_a_failure(self):
        bench = mock.MagicMock()
        bench.tunnel.interfaces[0].peak_memory_mb.side_effect = [4.0, 6.5]

        def streamed(_bench, back, flooded=None):
            if flooded == "right-mac1" or back:
                raise Failure(f"starved, back: {back}")
            return (1.0, 99.0, 0) if flooded else 2.0

        with (mock.patch.object(measures, "streamed", streamed), mock.patch.object(measures, "newcomer", lambda _: 5.0),
              mock.patch.object(measures, "flooding", lambda _bench, kind, *_: kind)):
            found = {key: value for some in measures.strangers(bench) for key, value in some.items()}
        self.assertEqual(set(found), {metric.name for metric in measures.GROUPS["strangers"].metrics})
        failed = {key for key, value in found.items() if isinstance(value, Failure)}
        self.assertEqual(failed, {key for key in found if key.endswith("r") and key != "strangers_newcomer"} | {
            "strangers_right", "strangers_right_kpps"})
        self.assertEqual(found["strangers_wrong_kept"], 100.0)
        self.assertEqual((found["strangers_newcomer"], found["strangers_memory"]), (5.0, 2.5))


class Streams(unittest.TestCase):
    def test_goodput_is_what_came_either_way(self):
        with tempfile.TemporaryDirectory() as folder:
            traffic = load.Traffic(pathlib.Path(folder))
            for back in (False, True):
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                with traffic.stream(Here, f"127.0.0.1:{port}", back) as stream:
                    self.assertGreater(stream.gbits(0.1), 0)
                    stream.receiver.kill()
                    stream.receiver.wait()
                    with self.assertRaises(Failure):
                        stream.gbits(0.1)
            with self.assertRaises(Failure), traffic.stream(Here, "192.0.2.1:1"):
                pass


class Turns(unittest.TestCase):
    @staticmethod
    def order(number_of_round, quick=False):
        args = types.SimpleNamespace(metrics=["tcp", "paced"], quick=quick, explicit=True)
        chosen = [tunnel.Implementation(name, ("true",)) for name in "abcd"]
        made = run.turns(run.plan(args, chosen), number_of_round)
        return [(turn, group.name, implementation.name) for turn, group, implementation in made]

    def test_a_round_comes_to_latency_more_often_each_time_beginning_with_another_one(self):
        def expected(group, turn, names):
            return [(turn, group, name) for name in names]

        latency = ("paced", 1, "abcd"), ("paced", 2, "bcda"), ("paced", 3, "cdab")
        self.assertEqual(self.order(1), sum((expected(*step) for step in (("tcp", 1, "abcd"), *latency)), []))
        latency = ("paced", 4, "dabc"), ("paced", 5, "abcd"), ("paced", 6, "bcda")
        self.assertEqual(self.order(2), sum((expected(*step) for step in (("tcp", 2, "bcda"), *latency)), []))
        self.assertEqual(self.order(1, quick=True), expected("tcp", 1, "abcd") + expected("paced", 1, "abcd"))


class Floods(unittest.TestCase):
    @staticmethod
    def flood(key, seconds):
        return load.strangers(Here, STRANGER_FLOOD, "wrong-mac1", key, TOWARDS, seconds, 1000, 0)

    def test_it_reports(self):
        with self.flood(KEY, 0.2) as flood:
            flood.check()
            self.assertGreater(flood.report(load.GRACE)["sent"], 0)

    def test_it_says_why_it_fails(self):
        with self.flood("(none)", 0.2) as flood, self.assertRaisesRegex(Failure, "stranger_flood: .*none"):
            flood.report(load.GRACE)

    def test_what_is_measured_after_it_is_not_measured_beside_it(self):
        with self.flood(KEY, 0.01) as flood:
            flood.process.wait()
            with self.assertRaisesRegex(Failure, "ended before"):
                flood.check()

    def test_it_ends_with_its_block(self):
        begun = time.monotonic()
        with self.flood(KEY, load.BUILD_LIMIT) as flood:
            flood.check()
        self.assertIsNotNone(flood.process.poll())
        self.assertLess(time.monotonic() - begun, load.BUILD_LIMIT)


if __name__ == "__main__":
    unittest.main()
