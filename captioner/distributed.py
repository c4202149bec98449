"""Which process of a launch (`accelerate launch`, torchrun, MPI) this is, and how they share the work.

Rank and count are read from the environment, so a single process imports nothing for it.
"""

import os
import zlib
from dataclasses import dataclass
from datetime import timedelta

from captioner.errors import CaptionerError

# Variables of torchrun and accelerate, then of Intel MPI, Open MPI and MVAPICH.
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LOCAL_COUNT = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


@dataclass(frozen=True)
class Process:
    """One of the processes of a launch.

    Attributes:
        rank: from 0 to `count` - 1.
        local_rank: from 0 to `local_count` - 1 among the processes on the same machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def owns(self, image: str) -> bool:
        """Does this process caption this image? Only the name decides, so a folder that grows while the processes walk
        it does not change their shares."""
        return zlib.crc32(os.fsencode(image)) % self.count == self.rank

    def barrier(self) -> None:
        """Wait until every process of the launch gets here.

        The first call connects the processes; a broken connection shows that one has ended.

        Raises:
            CaptionerError: a process has ended or cannot be reached.
        """
        if self.count == 1:
            return
        import torch.distributed as distributed

        try:
            if not distributed.is_initialized():
                forever = timedelta(days=365)  # a share may take long
                distributed.init_process_group("gloo", rank=self.rank, world_size=self.count, timeout=forever)
            distributed.barrier()
        except (RuntimeError, ValueError) as error:  # raised by torch and gloo for an unreachable process
            reason = str(error).splitlines()[0]
            raise CaptionerError(f"process {self.rank} of {self.count} cannot reach the others: {reason}") from error


def this_process() -> Process:
    """Return the current process.

    Raises:
        CaptionerError: a variable of the launcher is not a number, or the rank is not below the count.
    """
    process = Process(_number(RANK, 0), _number(COUNT, 1), _number(LOCAL_RANK, 0), _number(LOCAL_COUNT, 1))
    if not 0 <= process.rank < process.count:
        raise CaptionerError(
            f"the environment says that this is process {process.rank} (RANK) of {process.count} (WORLD_SIZE)"
        )
    if process.local_count < 1 or process.local_rank < 0:
        raise CaptionerError(
            f"the environment says that this is process {process.local_rank} (LOCAL_RANK) of {process.local_count} "
            "(LOCAL_WORLD_SIZE) on this machine"
        )
    return process


def available_cores() -> int:
    """Return how many cores this process may use: its share of the cores that the launch is bound to."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, bound // this_process().local_count)


def _number(names: tuple[str, ...], default: int) -> int:
    for name in names:
        if name in os.environ:
            try:
                return int(os.environ[name])
            except ValueError:
                raise CaptionerError(f"the environment variable {name} is {os.environ[name]!r}, not a number") from None
    return default
