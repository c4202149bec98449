"""`captioner env`: describe the installation, for bug reports."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    *("torch", "torchvision", "transformers", "timm", "accelerate", "peft", "datasets", "safetensors"),
    *("huggingface_hub", "tokenizers", "sentencepiece", "onnx", "onnxruntime", "numpy", "pillow"),
)
VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_", "CUDA_VISIBLE_DEVICES", "PYTORCH_", "ACCELERATE_", "HF_HUB_OFFLINE")
"""Environment variables, or how their names begin, that change speed or results and hold no secret."""

INSTRUCTION_SETS = re.compile(r"(avx|amx|fma|f16c|asimd|sve|bf16|i8mm)\w*|sme\d?$")


def env() -> None:
    """Describe this installation, to paste into a bug report.

    Names no user, folder or token.
    """
    from captioner import __version__
    from captioner.distributed import available_cores
    from captioner.hub.find import BUNDLED

    cpuinfo = _cpuinfo()
    described = {
        "captioner": __version__ + ("" if (BUNDLED / "config.json").is_file() else ", without the bundled model"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.platform()} {platform.machine()}",
        "processor": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cores": f"{available_cores()} of {os.cpu_count()}",
        "memory": _memory(),
        "instruction sets": _instruction_sets(cpuinfo),
        **_torch(),
        **_onnxruntime(),
        **{package: _version(package) for package in PACKAGES},
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }
    for name, value in described.items():
        print(f"{name}: {value}")


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; elsewhere nothing."""
    path = Path("/proc/cpuinfo")
    first = path.read_text(errors="replace").split("\n\n")[0] if path.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _instruction_sets(cpuinfo: dict[str, str]) -> str:
    flags = cpuinfo.get("flags", cpuinfo.get("Features", "")).split()
    if not flags and find_spec("torch"):
        import torch

        return str(torch.backends.cpu.get_cpu_capability())
    return " ".join(flag for flag in flags if INSTRUCTION_SETS.match(flag)) or "unknown"


def _memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().total / 2**30:.1f} GiB"


def _torch() -> dict[str, str]:
    """The devices that torch finds, and how many threads it uses."""
    if not find_spec("torch"):
        return {}
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu"]
    for index in range(torch.accelerator.device_count() if accelerator else 0):
        name = torch.cuda.get_device_name(index) if accelerator == torch.device("cuda") else ""
        devices.append(f"{accelerator}:{index} {name}".strip())
    found = {"devices": ", ".join(devices), "threads": f"{torch.get_num_threads()} (torch)"}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found


def _onnxruntime() -> dict[str, str]:
    if not find_spec("onnxruntime"):
        return {}
    import onnxruntime

    return {"ONNX Runtime providers": ", ".join(onnxruntime.get_available_providers())}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
