import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from captioner.cpu.threads import USERS_CHOICE, brief_waits

on_gnu_openmp = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="GNU's OpenMP on two cores or more"
)


def spin_count(code: str, **environment: str) -> str | None:
    """How often GNU's OpenMP says that threads spin, in a process that runs this."""
    clean = {name: value for name, value in os.environ.items() if name not in USERS_CHOICE}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    counts = [line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not counts:
        pytest.skip("torch came with another OpenMP than GNU's")
    return counts[0]


@pytest.mark.parametrize(
    ("code", "environment", "expected"),
    [
        ("import captioner, torch", {}, "1000"),
        ("from captioner import Captioner; Captioner.from_pretrained(backend='torch')", {}, "1000"),
        ("import captioner.cli, torch", {}, "1000"),
        ("import captioner, torch", {"GOMP_SPINCOUNT": "77"}, "77"),
        ("import captioner, torch", {"OMP_WAIT_POLICY": "passive"}, "0"),
        ("import torch, captioner", {}, "300000"),
    ],
)
def test_threads_spin_briefly_where_captioner_is_imported_first_and_the_user_has_not_said(code, environment, expected):
    assert spin_count(code, **environment) == expected


def test_an_environment_that_comes_too_late_is_left_alone():
    code = "import os, torch, captioner; assert 'GOMP_SPINCOUNT' not in os.environ"
    clean = {name: value for name, value in os.environ.items() if name not in USERS_CHOICE}
    subprocess.run([sys.executable, "-c", code], env=clean, check=True)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settled(count: int) -> bool:
    """Is that how many threads there are, once those that end have ended?"""
    deadline = time.monotonic() + 10
    while threads() != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return threads() == count


@pytest.fixture
def two_threads(monkeypatch):
    """As where torch was imported first, on all cores."""
    for name in USERS_CHOICE:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.zeros(1 << 20)  # starts the team of this thread
    yield
    torch.set_num_threads(before)


@on_gnu_openmp
def test_the_teams_that_shorten_waits_end_with_the_block(two_threads):
    before, num_threads, environment = threads(), torch.get_num_threads(), dict(os.environ)
    with pytest.raises(ValueError, match="inside"), brief_waits():
        assert threads() > before and torch.get_num_threads() == num_threads
        with brief_waits():
            pass
        raise ValueError("inside")
    assert settled(before)
    assert torch.get_num_threads() == num_threads and dict(os.environ) == environment


@on_gnu_openmp
@pytest.mark.parametrize("name", USERS_CHOICE)
def test_how_the_user_has_threads_wait_stays(two_threads, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    before = threading.active_count()
    with brief_waits():
        assert threading.active_count() == before


SPIN = """
import time, torch
from captioner.cpu.threads import brief_waits
torch.set_num_threads(2)
numbers = torch.zeros(1 << 20)

def spent():
    start = time.process_time()
    for _ in range(50):
        numbers.neg_()
        time.sleep(0.005)  # the other thread waits for what comes next
    return time.process_time() - start

spent()
with brief_waits():
    inside = spent()
print(spent(), inside, spent())
"""


@on_gnu_openmp
def test_threads_stop_spinning_in_the_block_and_go_on_after_it():
    """Told by the time that the processor spends while the program sleeps."""
    clean = {name: value for name, value in os.environ.items() if name not in (*USERS_CHOICE, "OMP_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", SPIN], env=clean, capture_output=True, text=True, check=True)
    before, inside, after = map(float, done.stdout.split())
    assert inside < 0.7 * before and inside < 0.7 * after
