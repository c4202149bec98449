import os
import socket
import subprocess
import sys

import pytest
import torch

from captioner.distributed import Process, available_cores, this_process
from captioner.errors import CaptionerError
from captioner.infer.devices import choose_device


@pytest.mark.parametrize("names", ["RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE", "PMI_RANK PMI_SIZE"])
def test_a_launch_is_known_by_its_environment(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    assert this_process() == Process(0, 1, 0, 1)
    for name, number in zip(names.split(), ("5", "8", "1", "4"), strict=False):
        monkeypatch.setenv(name, number)
    assert this_process() == (Process(5, 8, 1, 4) if "LOCAL_RANK" in names else Process(5, 8))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RANK", "", "RANK is '', not a number"),
        ("WORLD_SIZE", "x", "WORLD_SIZE is 'x', not a number"),
        ("PMI_RANK", "first", "PMI_RANK is 'first', not a number"),
        ("RANK", "1", r"process 1 \(RANK\) of 1 \(WORLD_SIZE\)"),
        ("WORLD_SIZE", "0", r"process 0 \(RANK\) of 0 \(WORLD_SIZE\)"),
        ("LOCAL_WORLD_SIZE", "0", r"process 0 \(LOCAL_RANK\) of 0 \(LOCAL_WORLD_SIZE\) on this machine"),
        ("LOCAL_RANK", "-1", r"process -1 \(LOCAL_RANK\) of 1 \(LOCAL_WORLD_SIZE\) on this machine"),
    ],
)
def test_an_environment_that_no_launch_has_is_refused_by_the_variable_s_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(CaptionerError, match=message):
        this_process()


def test_every_image_is_exactly_one_process_s() -> None:
    images = [f"photos/{number:04}.jpg" for number in range(1000)] + [os.fsdecode(b"caf\xe9.jpg")]
    processes = [Process(rank, 3) for rank in range(3)]
    owners = [[process.owns(image) for process in processes] for image in images]
    assert all(sum(owned) == 1 for owned in owners)
    assert all(250 < sum(shares) < 420 for shares in zip(*owners, strict=True))


MEET_TWICE = """
import os
from captioner.errors import CaptionerError
from captioner.distributed import this_process

process = this_process()
process.barrier()
if process.rank == 1:
    os._exit(9)
try:
    process.barrier()
except CaptionerError as error:
    print(error)
"""


def test_a_process_that_ends_early_is_noticed_by_those_that_wait_for_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    second, first = (
        subprocess.Popen(
            [sys.executable, "-c", MEET_TWICE], env=environment | {"RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "10"
    )
    assert first.communicate(timeout=60)[0].startswith("process 0 of 2 cannot reach the others: ")
    assert second.wait(60) == 9


def test_processes_of_a_machine_share_the_cores_they_are_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 4, 6, 8, 10}, raising=False)
    assert available_cores() == 6
    for processes, cores in (("4", 1), ("2", 3), ("8", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert available_cores() == cores


def test_processes_of_a_machine_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch, "zeros", lambda size, device: tried.append(device) or torch.ones(size))
    assert choose_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 2)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    assert tried[1:3] == [torch.device("cuda", 2)] * 2, "each is tried before weights are read"
