"""The measurements of gpu.py, which runs each section in its own process; each row is one JSON line on stdout.

    PYTHONPATH=. python benchmarks/gpu_sections.py SECTION SCRATCH    then a line {} on stdin

Both sides of a comparison have the same weights or the same shape, the same precision and the same batch. Inference
writes 16 tokens a caption. Our side is a `Captioner`'s stream, including decoding to text; the peer is transformers'
`VisionEncoderDecoderModel.generate` with its tokenizer, eager or compiled with a static cache. Training steps use
batches that are already on the device, five captions an image; the peer is transformers' Trainer on single captions,
each with its image.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
import transformers
from gpu_inference import inference_section, prepare_inference
from gpu_profile import memory_section, profile_section
from gpu_training import draw_samples, training_section
from gpu_work import ROOT, Measurement, Row, Work, go_on_with_a_sound_device, run, seconds_each

# device


def device_section(work: Work) -> None:
    run(
        work,
        [
            Measurement("versions", 20, lambda: versions(work)),
            Measurement("matrix products", 20, lambda: matrix_products(work)),
            Measurement("memory", 20, lambda: memory_speed(work)),
        ],
    )


def versions(work: Work) -> Row:
    values: Row = {"python": sys.version.split()[0], "cpu_cores": os.cpu_count()}
    values |= {module.__name__: module.__version__ for module in (torch, transformers, timm, accelerate)}
    values["commit"] = command_output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if work.device.type == "cuda":
        properties = torch.cuda.get_device_properties(work.device)
        values |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        values |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
        query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
        values["driver, clock, power"] = command_output("nvidia-smi", query, "--format=csv,noheader")
    return values


def command_output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def matrix_products(work: Work) -> Row:
    size = 256 if work.tiny else 8192
    found: Row = {}
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        one, other = (torch.randn(size, size, device=work.device).to(dtype) for _ in range(2))
        found[f"peak_{name}_flops"] = 2 * size**3 / seconds_each(lambda one=one, other=other: one @ other, work, 5)
    return found


def memory_speed(work: Work) -> Row:
    count = 1 << (16 if work.tiny else 30)
    source = torch.ones(count, dtype=torch.uint8, device=work.device)
    target = torch.empty_like(source)
    found: Row = {"peak_bytes_per_s": 2 * count / seconds_each(lambda: target.copy_(source), work, 5)}
    if work.device.type == "cuda":
        host = torch.ones(1 << 27, dtype=torch.uint8)
        pinned, here = host.pin_memory(), torch.empty_like(host, device=work.device)
        seconds = {"pageable": seconds_each(lambda: here.copy_(host), work)}
        seconds["pinned"] = seconds_each(lambda: here.copy_(pinned, non_blocking=True), work)
        seconds["pinning"] = seconds_each(host.pin_memory, work)
        found |= {f"{name}_gb_per_s": round(len(host) / 1e9 / each, 1) for name, each in seconds.items()}
        one = torch.zeros(1, device=work.device)
        found["launch_us"] = round(1e3 * seconds_each(lambda: [one.add_(1) for _ in range(1000)], work), 2)
    return found


# tests


def tests_section(work: Work) -> None:
    """Run the GPU tests, one row each; rows that exist already are not run again."""
    import pytest

    class Rows:
        """pytest's plugin."""

        @pytest.hookimpl(trylast=True)  # after tests without the marker have been deselected
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            work.emit({"plan": [item.nodeid for item in items]})
            items[:] = [item for item in items if item.nodeid not in work.done]
            items.sort(key=lambda item: "compile" in item.name)  # the slowest ones last

        def pytest_runtest_logstart(self, nodeid: str) -> None:
            self.reports: list[Any] = []
            work.emit({"start": nodeid, "limit": 60})

        def pytest_runtest_logreport(self, report: Any) -> None:
            self.reports.append(report)

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            outcomes = [report.outcome for report in self.reports]
            outcome = next((outcome for outcome in outcomes if outcome != "passed"), "passed")
            errors = [report.longreprtext[-2500:] for report in self.reports if report.failed]
            reasons = [report.longrepr[2] for report in self.reports if report.skipped]
            seconds = round(sum(report.duration for report in self.reports), 1)
            row: Row = {"row": nodeid, "outcome": outcome, "row_seconds": seconds}
            work.emit(row | ({"error": errors[0]} if errors else {"reason": reasons[0]} if reasons else {}))
            go_on_with_a_sound_device(work.device)

    os.chdir(ROOT)
    files = [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]
    arguments = ["-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "--continue-on-collection-errors"]
    pytest.main([*arguments, *files], plugins=[Rows()])


SECTIONS: dict[str, tuple[Callable[[Work], Any] | None, Callable[[Work], None]]] = {
    "device": (None, device_section),
    "tests": (None, tests_section),
    "inference": (prepare_inference, inference_section),
    "training": (draw_samples, training_section),
    "profile": (prepare_inference, profile_section),
    "memory": (prepare_inference, memory_section),
}
"""For each section: what it prepares on the CPU while another section uses the device, and what it measures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=list(SECTIONS))
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--done", nargs="*", default=[], help="rows that exist already")
    options = parser.parse_args()
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # everything that is printed goes to the log
    print(f"\n===== {options.section}", file=sys.stderr)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    prepare, measure = SECTIONS[options.section]
    if options.tiny:
        torch.set_num_threads(1)

    def emit(row: Row) -> None:
        rows.write(json.dumps(row) + "\n")

    def work(limits: Row) -> Work:
        device = torch.device(options.device)
        return Work(device, options.quick, options.tiny, options.scratch, tuple(options.done), emit, limits)

    if prepare is not None:
        prepare(work({}))
    limits = sys.stdin.readline()
    if limits:
        measure(work(json.loads(limits)))
        os._exit(0)  # without waiting for threads that a row left running


if __name__ == "__main__":
    main()
