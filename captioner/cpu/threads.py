"""How OpenMP's threads wait for each other, in a process that shares its cores with other work.

GNU's OpenMP, which torch's wheels for Linux bring, lets a thread that waits for others spin 300,000 times, which is
milliseconds, before it sleeps. A decoder step waits some hundred times. Where other work has the cores, a thread then
spins on one while the thread that it waits for is not running, and captioning takes several times as long.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

USERS_CHOICE = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Let OpenMP's threads spin 1,000 times, unless the user has said how they wait or torch is imported.

    OpenMP reads this when torch is imported; after that, see `brief_waits`.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_CHOICE):
        os.environ["GOMP_SPINCOUNT"] = "1000"


@contextmanager
def brief_waits() -> Iterator[None]:
    """Let OpenMP's threads spin 100 times in this block, where `limit_spinning` came too late.

    OpenMP has no call for it, but a rule: while its teams have more threads than there are cores, threads spin no
    longer than that (libgomp's manual, under GOMP_SPINCOUNT). So other threads start a team each, which sleeps until
    the block ends; afterwards everything is as it was.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    others = torch.get_num_threads() - 1  # those of a team that are not the thread that starts it
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
    """Start as many threads as torch computes with, which last as long as this one."""
    import torch

    torch.zeros(torch.get_num_threads() << 16)
    done.wait()
