"""A launch of several processes (`accelerate launch`, torchrun, MPI) as captioning sees it: each takes its share.

Who and how many they are is read from the environment, so that a process alone pays nothing.
"""

import os
import zlib
from dataclasses import dataclass
from datetime import timedelta

from captioner.errors import CaptionerError

# torchrun's and accelerate's names, then those of Intel MPI, Open MPI and MVAPICH
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LOCAL_COUNT = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


@dataclass(frozen=True)
class Process:
    """One of the processes of a launch.

    Attributes:
        rank: its number, from 0 to `count` - 1.
        local_rank: its number among the `local_count` on the same machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def owns(self, image: str) -> bool:
        """Is this image this process's to caption? Its name decides: a folder that grows while processes walk it one
        after the other changes nobody's share."""
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
                forever = timedelta(days=365)  # shares take as long as they take
                distributed.init_process_group("gloo", rank=self.rank, world_size=self.count, timeout=forever)
            distributed.barrier()
        except (RuntimeError, ValueError) as error:  # what torch and gloo raise for a lost peer, or one never found
            reason = str(error).splitlines()[0]
            raise CaptionerError(f"process {self.rank} of {self.count} cannot reach the others: {reason}") from error


def this_process() -> Process:
    """The process that runs this.

    Raises:
        CaptionerError: a variable that the launcher sets is not a number, or the rank not below the count.
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
    """Cores that this process may use: those it is bound to, shared with the launch's others on the machine."""
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
