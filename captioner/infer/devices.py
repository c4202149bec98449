"""Which device computes, and in which precision."""

import torch

from captioner.distributed import this_process
from captioner.errors import CaptionerError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is an accelerator if there is one.

    Raises:
        CaptionerError: there is no such device.
    """
    if name == "auto":
        name = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        device = torch.device(name)
        process, devices = this_process(), torch.accelerator.device_count()
        if process.local_count > 1 and devices > 1 and device.type != "cpu" and device.index is None:
            device = torch.device(device.type, process.local_rank % devices)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises for a device it lacks
        raise CaptionerError(f"device {str(name)!r}: {str(error).splitlines()[0]}") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """fp32, bf16 or fp16; "auto" is what suits the device.

    Raises:
        CaptionerError: it is none of these.
    """
    if name == "auto":
        if device.type == "cpu":
            return "fp32"
        return "fp16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else "bf16"
    if name not in DTYPES:
        raise CaptionerError(f"precision {name!r}: choose auto, {', '.join(DTYPES)}")
    return name
