"""gpu.py's sections `profile` and `memory`: kernels and waits, and what uses the memory."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from gpu_inference import new_tokens, our_captioner, pixel_batch
from gpu_training import entered
from gpu_work import Measurement, Row, Work, peak_gib, run, synchronize
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# profile


def profile_section(work: Work) -> None:
    name, batch = next(iter(work.shapes)), work.batch_size
    run(
        work,
        [
            Measurement("inference, 4 beams", 40, lambda: profile_inference(work, name, batch)),
            Measurement("training, joint", 60, lambda: profile_training(work, name, batch)),
        ],
    )


def profile_inference(work: Work, name: str, batch: int) -> Row:
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    options, pixels = captioner.options(**new_tokens(4)), pixel_batch(work.shapes[name], batch)
    stream = captioner.stream(options)
    for _ in range(4):  # until CUDA graphs have been captured
        stream.add(pixels)
    synchronize(work.device)
    return profiled(lambda: stream.add(pixels), work)


def profile_training(work: Work, name: str, batch: int) -> Row:
    with entered(work, name, "joint", batch) as (trainer, model, settings, batches):
        for one in batches:
            trainer.step.take(model, [one], settings, 0)
        synchronize(work.device)
        return profiled(lambda: [trainer.step.take(model, [one], settings, 0) for one in batches], work)


def profiled(function: Callable[[], Any], work: Work) -> Row:
    """Profile a call: on a GPU duration, time between kernels and slowest kernels; on a CPU the slowest ops."""
    on_gpu = work.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as recorded:
        function()
        synchronize(work.device)
    if not on_gpu:
        slowest = sorted(recorded.key_averages(), key=lambda one: -one.self_cpu_time_total)[:12]
        return {"top": [{"op": one.key, "ms": round(one.self_cpu_time_total / 1e3, 2)} for one in slowest]}
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in recorded.events()
        if event.device_type == DeviceType.CUDA
    )
    span = max(end for _, end, _ in kernels) - kernels[0][0]
    gaps = [max(0.0, later[0] - earlier[1]) for earlier, later in pairwise(kernels)]
    times: defaultdict[str, list[float]] = defaultdict(list)
    for start, end, kernel in kernels:
        times[kernel].append(end - start)
    top = sorted(times.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "kernels": len(kernels),
        "span_ms": round(span / 1e3, 2),
        "waiting_share": round(sum(gaps) / span, 3),
        "longest_waits_ms": ", ".join(f"{gap / 1e3:.2f}" for gap in sorted(gaps, reverse=True)[:5]),
        "top": [
            {"kernel": kernel[:110], "calls": len(each), "ms": round(sum(each) / 1e3, 2),
             "share": round(sum(each) / span, 3)}
            for kernel, each in top
        ],
    }  # fmt: skip


# memory


def memory_section(work: Work) -> None:
    name, batch = next(iter(work.shapes)), work.batch_size
    rows = [Measurement(f"training, joint, batch {size}", 40, functools.partial(training_memory, work, name, size))
            for size in (batch, 2 * batch)]  # fmt: skip
    rows += [
        Measurement(f"4 beams, batch {size}", 30, functools.partial(decoding_memory, work, name, size))
        for size in (batch, 4 * batch)
    ]
    run(work, rows)


def gib(tensors: Iterator[Tensor]) -> float:
    return round(sum(tensor.nbytes for tensor in tensors) / 2**30, 3)


def training_memory(work: Work, name: str, batch: int) -> Row:
    with entered(work, name, "joint", batch) as (trainer, model, settings, batches):
        trainer.step.take(model, batches[:1], settings, 0)
        state = trainer.optimizer.optimizer.state.values()
        return {
            "weights_gib": gib(iter(trainer.model.parameters())),
            "moments_gib": gib(tensor for slot in state for tensor in slot.values()),
            "peak_gib": peak_gib(work.device),
            "micro_batch": trainer.step.micro_batch,
        }


def decoding_memory(work: Work, name: str, batch: int) -> Row:
    captioner = our_captioner(work.scratch / name / "ours", work.device)
    stream = captioner.stream(captioner.options(**new_tokens(4)))
    pixels = pixel_batch(work.shapes[name], batch)
    captions = [caption for _ in range(3) for caption in stream.add(pixels)] + stream.finish()
    assert len(captions) == 3 * batch
    return {"weights_gib": gib(iter(captioner.backend.model.parameters())), "peak_gib": peak_gib(work.device)}
