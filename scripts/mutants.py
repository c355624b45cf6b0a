#!/usr/bin/env python3
"""Breaks the code on purpose, one change at a time, and looks whether the tests notice.

tests/mutants.txt lists the changes: what each breaks, the file, the lines before and after, and the tests that must
fail then. Each is made in a copy of the sources below target/mutants, which has a target folder of its own; the
sources themselves are never touched, and what is built of them stays built.

    scripts/mutants.py                 all of them
    scripts/mutants.py S-04 S-2        those whose id begins with one of these
    scripts/mutants.py --list          what there is

Prints a line for each change and one for all, which also go to target/mutants/report.txt. Fails if a change was not
noticed by each test that it names, does not apply any more, or does not build.
"""

import argparse
import fcntl
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutants.txt"
WORK = ROOT / "target" / "mutants"
TREE = WORK / "tree"
# A broken loop may never end; the slowest test that is named here takes a minute on a busy machine.
LIMIT_S = 300
# What the listed tests of the library do not need is not built: the sidecar, the stack, the program.
SMALL = ["--no-default-features", "--features", "device,ring,graviola"]
SMALL_TARGETS = {"lib", "allocations", "device_manners", "loom", "simulation"}
# The part of the library that is not built then.
WHOLE_LIB = ("src/cli/", "src/metrics", "src/netstack", "src/proxy")
# Only this crate is built anew each time: the less is made of it, the sooner it is there.
QUICK = ["--config", "profile.dev.package.adit.opt-level=0", "--config", "profile.dev.package.adit.debug=false"]
# But what keys leave behind on stacks, and which branches there are, is for the optimizer to say.
OPTIMIZED_TARGETS = {"constant_time", "key_residue", "keys_in_memory", "uapi_transcripts"}


class Mutant:
    """One change of one file."""

    def __init__(self, number, ident, path):
        self.number, self.ident, self.path = number, ident, path
        self.before, self.after, self.tests = [], [], []

    def name(self):
        changed = [line for line in self.after if line not in self.before] or ["(removed) " + "; ".join(
            line.strip() for line in self.before if line not in self.after)]
        return f"{self.ident} {self.path}: {' '.join(line.strip() for line in changed)}"


def read_list():
    """The entries of the list; its head says what an entry looks like."""
    mutants = []
    for number, line in enumerate(LIST.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        head = re.fullmatch(r"\[([^\]]+)\] (\S+)", line)
        if head:
            mutants.append(Mutant(number, *head.groups()))
        elif line[0] in " -+" and mutants:
            mutant = mutants[-1]
            if line[0] != "+":
                mutant.before.append(line[1:])
            if line[0] != "-":
                mutant.after.append(line[1:])
        elif line.startswith("= ") and mutants:
            mutants[-1].tests.append(line[2:].strip())
        else:
            sys.exit(f"{LIST}:{number}: what is this? {line}")
    return mutants


def target_of(test):
    """The cargo target that a test, `file::function`, belongs to."""
    path = test.split("::")[0]
    if path.startswith("tests/"):
        return path.removeprefix("tests/").split("/")[0].removesuffix(".rs")
    return "whole lib" if path.startswith(WHOLE_LIB) else "lib"


def selection(target):
    """Cargo's arguments for one target."""
    chosen = ["--lib"] if target.endswith("lib") else ["--test", target]
    features = SMALL if target in SMALL_TARGETS else []
    return chosen + features + ([] if target in OPTIMIZED_TARGETS else QUICK)


def copy_sources(tree=TREE):
    """Makes the copy equal to the sources, changes that are not committed included; what is equal keeps its time."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True)
    wanted = {path for path in listed.split("\0") if path and (ROOT / path).is_file()}
    for path in wanted:
        source, copy = ROOT / path, tree / path
        if not copy.is_file() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    for folder, _, files in os.walk(tree):
        for file in files:
            path = pathlib.Path(folder, file)
            if str(path.relative_to(tree)) not in wanted:
                path.unlink()


def cargo(arguments):
    """Runs cargo in the copy, for as long as it may; its exit status, or None, and what it said."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(WORK / "build"), RUST_BACKTRACE="0")
    environment.setdefault("ADIT_TEST_HANDSHAKES", "500")
    process = subprocess.Popen(
        ["cargo", "test", *arguments], cwd=TREE, env=environment, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    limit = None if "--no-run" in arguments else LIMIT_S
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def try_out(mutant):
    """Makes the change, runs its tests, and takes it back. Returns what became of it, and the tests that noticed."""
    file = TREE / mutant.path
    text = file.read_text() if file.is_file() else ""
    before, after = ("".join(line + "\n" for line in lines) for lines in (mutant.before, mutant.after))
    if not before or text.count(before) != 1:
        return "DOES NOT APPLY ANY MORE", f"its lines are there {text.count(before) if before else 0} times"
    killers, missing = [], []
    file.write_text(text.replace(before, after))
    try:
        for target in sorted({target_of(test) for test in mutant.tests}):
            status, output = cargo([*selection(target), "--no-run"])
            if status:
                error = re.search(r"^error.*(\n.*-->.*)?", output, re.M)
                return "DOES NOT BUILD", error.group(0).replace("\n", " ") if error else output[-200:]
            names = [test.split("::")[-1] for test in mutant.tests if target_of(test) == target]
            status, output = cargo([*selection(target), "--", "--include-ignored", *names])
            for name in names:
                failed = re.search(rf"\btest (\S+::)?{name}( - should panic)? \.\.\. FAILED", output, re.M)
                passed = re.search(rf"\btest (\S+::)?{name}( - should panic)? \.\.\. ok", output, re.M)
                if failed:
                    killers.append(name)
                elif passed or status == 0 or f"SKIPPED: {name}" in output:
                    missing.append(name)
                else:
                    killers.append(name + (" (never ended)" if status is None else " (died)"))
    finally:
        file.write_text(text)
    return ("SURVIVED" if missing or not killers else "killed"), ", ".join(missing or killers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help="the beginning of an id, for instance S-04")
    parser.add_argument("--list", action="store_true", help="print the changes and make none")
    arguments = parser.parse_args()
    wanted = arguments.ids
    mutants = [it for it in read_list() if not wanted or any(it.ident.startswith(prefix) for prefix in wanted)]
    if not mutants:
        sys.exit("nothing in the list has such an id")
    if arguments.list:
        for mutant in mutants:
            print(mutant.name())
        return
    WORK.mkdir(parents=True, exist_ok=True)
    lock = open(WORK / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("mutants: another run is at work in target/mutants")
    copy_sources()
    # Tests that fail without a change prove nothing.
    for target in sorted({target_of(test) for mutant in mutants for test in mutant.tests}):
        names = [test.split("::")[-1] for it in mutants for test in it.tests if target_of(test) == target]
        status, output = cargo([*selection(target), "--no-run"])
        if status == 0:
            status, output = cargo([*selection(target), "--", "--include-ignored", *sorted(set(names))])
        unseen = [name for name in names if not re.search(rf"\btest (\S+::)?{name} ", output, re.M)]
        if status != 0 or unseen:
            sys.exit(f"{output[-4000:]}\nmutants: without any change, tests of {target} fail or are not there: {unseen}")
    counts = {}
    with open(WORK / "report.txt", "w") as report:
        def tell(line):
            print(line, flush=True)
            print(line, file=report, flush=True)

        # A file's changes after each other: the less is built anew.
        for mutant in sorted(mutants, key=lambda it: (target_of(it.tests[0]), it.path)):
            start = time.monotonic()
            outcome, by = try_out(mutant)
            counts[outcome] = counts.get(outcome, 0) + 1
            tell(f"{outcome}: {mutant.name()}\n    {by} ({time.monotonic() - start:.0f} s)")
        tell(f"{len(mutants)} changes: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(set(counts) != {"killed"})


if __name__ == "__main__":
    main()
