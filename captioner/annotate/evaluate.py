"""Caption the images of a data set, to be scored against its own captions: `captioner evaluate`."""

from collections.abc import Hashable, Sequence

from captioner.annotate.pipeline import Failure, caption_images, progress_bar
from captioner.data.sources import Sample
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption
from captioner.infer.captioner import Captioner


def caption_samples(
    captioner: Captioner, samples: Sequence[Sample], options: GenerationOptions, *, batch_size: int, num_workers: int
) -> tuple[dict[Hashable, Caption], list[Failure[str | int]]]:
    """The best caption of each sample by its id, and the images that cannot be read.

    Raises:
        CaptionerError: none can be read.
    """
    captions: dict[Hashable, Caption] = {}
    failures: list[Failure[str | int]] = []
    images = ((sample.id, sample.image) for sample in samples)
    with progress_bar() as progress:
        task = progress.add_task("captioning", total=len(samples))
        for result in caption_images(captioner, images, options, batch_size=batch_size, num_workers=num_workers):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                captions[result.key] = result.caption
            progress.advance(task)
    if not captions:
        raise CaptionerError(f"no image can be read; the first is {failures[0].image}: {failures[0].message}")
    return captions, failures
