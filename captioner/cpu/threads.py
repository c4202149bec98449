"""Limits how long OpenMP's threads spin while they wait for each other.

GNU's OpenMP, which comes with torch's Linux wheels, lets a waiting thread spin 300,000 times, which takes milliseconds,
before it sleeps. A decoder step waits about a hundred times. If other processes use the cores, a thread then spins on a
core that the thread it waits for needs, and captioning takes several times as long.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

USERS_CHOICE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Let OpenMP's threads spin only 1,000 times, unless the user has configured this.

    OpenMP reads the setting when torch is imported; afterwards, use `brief_waits`.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_CHOICE):
        os.environ["GOMP_SPINCOUNT"] = "1000"


@contextmanager
def brief_waits() -> Iterator[None]:
    """Let OpenMP's threads spin only 100 times inside the block, if `limit_spinning` came too late.

    OpenMP has no function for this, but a rule: threads spin no longer than that while there are more of them than
    cores (libgomp's manual, under GOMP_SPINCOUNT). So this starts more threads with a team each, which sleep until the
    block ends.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    others = torch.get_num_threads() - 1  # threads of a team, without the one that starts it
    if not cores or not others or any(name in os.environ for name in USERS_CHOICE):
        yield
        return
    done = threading.Event()
    sleepers = [threading.Thread(target=_keep_a_team, args=(done,), daemon=True) for _ in range((cores - 1) // others)]
    for sleeper in sleepers:
        sleeper.start()
    try:
        yield
    finally:
        done.set()
        for sleeper in sleepers:
            sleeper.join()


def _keep_a_team(done: threading.Event) -> None:
    """Start a team of as many threads as torch uses; it lives until `done` is set."""
    import torch

    torch.zeros(torch.get_num_threads() << 16)
    done.wait()
