"""Measure captioner on a GPU in one command, and write OUT/gpu.json and OUT/gpu.md after each row.

    python benchmarks/gpu.py OUT                        ten minutes on an H100
    python benchmarks/gpu.py OUT --quick                four minutes: the most telling rows
    python benchmarks/gpu.py OUT --sections tests inference --seconds 150
                                                        these sections alone, in so much time together
    python benchmarks/gpu.py OUT --device cpu --tiny    a rehearsal, as in continuous integration

It needs a checkout of this repository and the package's dependencies (pytest for the tests). Nothing is installed or
downloaded: weights are random and photos are drawn. Sections run in turn, each in its own process with a time budget,
so that a crash, a hang or a broken CUDA context costs one row. gpu_sections.py measures them:

    device       versions, and the device's limits: matrix products, memory, copies
    tests        pytest -m gpu
    inference    ours against transformers' generate, eager and compiled with a static cache, same weights
    training     ours against transformers' Trainer, same shape; data loading separately
    profile      the most expensive kernels, and how long the device waits
    memory       what uses it

OUT/gpu.log holds the output of the sections. The exit status is 1 if time ran out, otherwise 0, even if rows failed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("gpu_sections.py")

BUDGETS = {
    "full": {"device": 50, "tests": 110, "inference": 210, "training": 140, "profile": 50, "memory": 30},
    "quick": {"device": 40, "tests": 70, "inference": 70, "training": 45, "profile": 10},
}
"""Seconds for each section. The first includes importing everything from a cold disk. Unused time goes to later
sections."""

LIMITS = {"full": 600, "quick": 240}
DEVICE_IS_BROKEN = 75
"""Exit status of a section that must be continued in another process."""

Row = dict[str, Any]


class Section:
    """A process that measures the rows of a section, and its messages.

    It imports and prepares while the previous section is still running, and then waits for `go`.
    """

    def __init__(self, name: str, options: argparse.Namespace, scratch: Path, done: list[str]) -> None:
        command = [sys.executable, str(SCRIPT), name, str(scratch), "--device", options.device, "--done", *done]
        command += [flag for flag, given in {"--quick": options.quick, "--tiny": options.tiny}.items() if given]
        path = os.environ.get("PYTHONPATH")
        with (options.out / "gpu.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # so that its children can be killed with it
            )
        self.messages: Queue[Row | None] = Queue()
        Thread(target=self._read, daemon=True).start()

    def go(self, limits: Row) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has already ended, and so will its messages
            self.process.stdin.write(json.dumps(limits) + "\n")
            self.process.stdin.flush()

    def message(self, seconds: float) -> Row | None:
        """Return the next message, or None if the process has ended.

        Raises:
            Empty: there is none within so many seconds.
        """
        return self.messages.get(timeout=max(seconds, 0.01))

    def end(self, patience: float) -> int:
        """Return the exit status; kill the process and its children if they still run after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)


class Report:
    """All rows so far; the files are rewritten after each row."""

    def __init__(self, out: Path, command: str, limit: float) -> None:
        self.out = out
        self.started = time.monotonic()
        self.content: Row = {"command": command, "limit_s": limit, "seconds": 0.0, "goals": [], "sections": {}}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def rows(self, section: str) -> list[Row]:
        return self.content["sections"].setdefault(section, {"rows": [], "not_reached": []})["rows"]

    def add(self, section: str, row: Row) -> None:
        self.rows(section).append(row)
        self.write()

    def not_reached(self, section: str, rows: list[str]) -> None:
        self.rows(section)
        self.content["sections"][section]["not_reached"] = rows
        self.write()

    def write(self) -> None:
        self.content["seconds"] = round(self.seconds, 1)
        self.content["goals"] = goals(self.content["sections"])
        for name, text in {"gpu.json": json.dumps(self.content, indent=1), "gpu.md": page(self.content)}.items():
            (self.out / name).write_text(text + "\n")


def run_section(
    name: str, section: Section, options: argparse.Namespace, scratch: Path, report: Report, deadline: float
) -> None:
    """Follow a section until it ends, or until `deadline` on the report's clock; if it breaks, go on after the row."""
    device_rows = report.rows("device")
    limits = {key: value for row in device_rows for key, value in row.items() if key.startswith("peak_")}
    done: list[str] = []
    planned: list[str] = []
    while True:
        section.go(limits)
        running, row_started, row_limit, timed_out = None, report.seconds, float("inf"), False
        while True:
            try:
                message = section.message(min(deadline, row_started + row_limit) - report.seconds)
            except Empty:
                timed_out = True
                break
            if message is None:
                break
            if "plan" in message:
                planned = message["plan"]
            elif "start" in message:
                running, row_started, row_limit = message["start"], report.seconds, message["limit"]
            else:
                running, row_limit = None, float("inf")
                done.append(message["row"])
                report.add(name, message)
        status = section.end(patience=0 if timed_out else 10)
        if running is not None:
            why = f"ended after {report.seconds - row_started:.0f} s" if timed_out else f"died, exit status {status}"
            report.add(name, {"row": running, "error": f"{why}; see gpu.log"})
            done.append(running)
        if status == 0 or report.seconds >= deadline or (running is None and status != DEVICE_IS_BROKEN):
            break
        section = Section(name, options, scratch, done)
    if status and running is None and status != DEVICE_IS_BROKEN:
        why = "ran out of time" if timed_out else f"died between rows, exit status {status}"
        report.add(name, {"row": "(section)", "error": f"{why}; see gpu.log"})
    report.not_reached(name, [row for row in planned if row not in done])


def goals(sections: Row) -> list[Row]:
    """Compare with the goals for an H100: bf16, batch 64, 4 beams, and training of both shapes."""
    rows = {(section, row["row"]): row for section, content in sections.items() for row in content["rows"]}

    def ratio(section: str, ours: str, other: str, key: str) -> float | None:
        one, two = (rows.get((section, row), {}).get(key) for row in (ours, other))
        return round(one / two, 2) if one and two else None

    lines = []
    for shape in ("vit_s_224", "vit_b_384"):
        of = f"{shape}, batch 64, 4 beams"
        eager = ratio("inference", f"{of}, ours", f"{of}, eager", "images_per_s")
        static = ratio("inference", f"{of}, ours", f"{of}, static", "images_per_s")
        trained = ratio("training", f"{shape}, joint, ours", f"{shape}, joint, Trainer", "tokens_per_s")
        lines += [(f"{of}: times eager generate", eager, 10), (f"{of}: times compiled static cache", static, 2)]
        lines += [(f"{shape}, joint training: times Trainer", trained, 3)]
    mfu = rows.get(("training", "vit_b_384, joint, ours"), {}).get("mfu")
    lines += [("vit_b_384, joint training: share of the measured peak", mfu, 0.4)]
    return [{"goal": goal, "value": value, "target": target} for goal, value, target in lines]


def page(content: Row) -> str:
    """Return the report as Markdown."""
    lines = [f"# {content['command']}", "", f"{content['seconds']} s of {content['limit_s']} s", "", "## goals", ""]
    lines += table([goal for goal in content["goals"] if goal["value"] is not None] or content["goals"])
    for name, section in content["sections"].items():
        lines += ["", f"## {name}", ""]
        fine = [row for row in section["rows"] if "error" not in row]
        for keys in dict.fromkeys(tuple(row) for row in fine if not any(isinstance(v, list) for v in row.values())):
            lines += [*table([row for row in fine if tuple(row) == keys]), ""]
        for row in fine:
            for key, value in row.items():
                if isinstance(value, list):
                    numbers = {k: v for k, v in row.items() if not isinstance(v, list)}
                    lines += [f"{json.dumps(numbers)}, {key}:", "", *table(value), ""]
        for row in section["rows"]:
            if "error" in row:
                lines += [f"**{row['row']} failed:**", "", "```", str(row["error"]), "```", ""]
        if section["not_reached"]:
            lines += [f"Not reached: {len(section['not_reached'])}, {'; '.join(section['not_reached'][:20])}", ""]
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    head = list(rows[0])
    cells = [[str(row.get(key, "")).replace("|", "\\|") for key in head] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the report; created if missing")
    parser.add_argument("--quick", action="store_true", help="the most telling rows, in four minutes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights, to try the command out")
    parser.add_argument("--sections", nargs="+", metavar="NAME", choices=list(BUDGETS["full"]), help="run only these")
    parser.add_argument("--seconds", type=float, metavar="S", help="total time for the sections")
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "quick" if options.quick else "full"
    limit = options.seconds or LIMITS[kind]
    budgets = {name: seconds for name, seconds in BUDGETS[kind].items() if name in (options.sections or BUDGETS[kind])}
    if options.seconds:
        budgets = {name: seconds * (limit - 5) / sum(budgets.values()) for name, seconds in budgets.items()}
    report = Report(options.out, "benchmarks/gpu.py " + " ".join(sys.argv[1:]), limit)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        scratch, waiting, deadline = Path(folder), list(budgets), 0.0
        following = Section(waiting[0], options, scratch, [])
        for name, seconds in budgets.items():
            section, waiting = following, waiting[1:]
            if waiting:
                following = Section(waiting[0], options, scratch, [])
            deadline = min(deadline + seconds, limit - 5)
            run_section(name, section, options, scratch, report, deadline)
            print(f"{report.seconds:6.1f} s  {name}: {len(report.rows(name))} rows", file=sys.stderr)
    report.write()
    print((options.out / "gpu.md").read_text())
    return int(report.seconds > limit)


if __name__ == "__main__":
    sys.exit(main())
