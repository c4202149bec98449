"""Caches the trunk's tokens of every image on disk, for phases with a frozen trunk and without augmentation."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from captioner.data.batches import Batch, load_batches
from captioner.data.dataset import CaptionDataset
from captioner.data.sources.stored_images import ShardMember, StoredImage
from captioner.errors import CaptionerError
from captioner.files import sync_path
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration


class FeatureStore(Sequence[Tensor]):
    """Memory-mapped float16 tokens [N, P, C]; `store[i]` returns the tokens [P, C] of image i."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokens = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise CaptionerError(f"{path}: damaged; delete it to have it computed again") from error

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return torch.from_numpy(np.array(self._tokens[index]))


def cache_features(
    model: CaptionerForConditionalGeneration,
    dataset: CaptionDataset,
    folder: Path,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    on_errors: Callable[[Batch], None],
) -> FeatureStore:
    """Run the trunk once over the data set, each process over its share, unless the file already exists.

    The file's name is a digest of everything that determines the tokens: the model's configuration, the trunk's
    weights, the precision, the decoding scale, the preprocessing and the images. A stale file is therefore never read.
    `on_errors` may raise for unreadable photos; if it does not, their tokens are zeros.
    """
    name = f"{trunk_digest(model, accelerator)}-{_pixels_digest(dataset)}" if accelerator.is_main_process else ""
    (name,) = broadcast_object_list([name])
    path = folder / f"{name}.npy"
    partial = path.with_suffix(".part")
    (found,) = broadcast_object_list([path.exists()])
    if not found:
        _fill(model, dataset, partial, accelerator, batch_size, num_workers, on_errors)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            sync_path(partial)
            partial.replace(path)
            sync_path(folder)
    accelerator.wait_for_everyone()
    return FeatureStore(path)


@torch.inference_mode()
def _fill(
    model: CaptionerForConditionalGeneration,
    dataset: CaptionDataset,
    path: Path,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    on_errors: Callable[[Batch], None],
) -> None:
    trunk = model.encoder.trunk.eval()
    batches = [list(range(i, min(i + batch_size, len(dataset)))) for i in range(0, len(dataset), batch_size)]
    share = batches[accelerator.process_index :: accelerator.num_processes]
    size = dataset.preprocessing.image_size
    probe = trunk(torch.zeros(1, 3, size, size, device=accelerator.device))[0]
    if accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float16, (len(dataset), *probe.shape[1:])).flush()
    accelerator.wait_for_everyone()
    tokens = np.lib.format.open_memmap(path, "r+")
    loader = load_batches(dataset, share, num_workers, pin_memory=accelerator.device.type == "cuda")
    bar = tqdm(zip(share, loader, strict=True), "trunk features", len(share), disable=None, leave=False)
    for indices, batch in bar:
        on_errors(batch)
        with accelerator.autocast():
            features = trunk(batch.to(accelerator.device).encoder_inputs["pixel_values"])[0]
        values = features.to(torch.float16)
        if not torch.isfinite(values).all():
            raise CaptionerError("trunk features exceed the range of float16; set augmentation or train the trunk")
        values[list(batch.errors)] = 0.0
        tokens[indices] = values.cpu().numpy()
    tokens.flush()


def delete_unusable(folder: Path, trunk: str | None) -> None:
    """Delete the stores that no later phase can use: those whose trunk does not have the digest `trunk`.

    None means that the trunk is about to be trained, so all stores are deleted.
    """
    for path in folder.glob("*"):
        if trunk is None or not path.name.startswith(f"{trunk}-"):
            path.unlink()


def trunk_digest(model: CaptionerForConditionalGeneration, accelerator: Accelerator) -> str:
    """Digest everything that determines an image's features, except the image's pixels."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    digest.update(f"{accelerator.mixed_precision}\0".encode())
    for name, tensor in sorted(model.encoder.trunk.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:20]


def _pixels_digest(dataset: CaptionDataset) -> str:
    """Digest everything that determines the pixels: images, decoding scale and preprocessing."""
    how = f"{dataset.min_size}\0{dataset.preprocessing}\0".encode()
    return hashlib.sha256(how + _images_digest(dataset)).hexdigest()[:20]


@functools.lru_cache(maxsize=16)  # alternating phases ask many times
def _images_digest(dataset: CaptionDataset) -> bytes:
    digest = hashlib.sha256()
    for sample in dataset.samples:
        digest.update(f"{sample.id}\0".encode() + _identity(sample.image))
    return digest.digest()


def _identity(image: object) -> bytes:
    """Return what changes when an image does: its bytes, or its file's name, size and times, including the ctime."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, StoredImage):
        return hashlib.sha256(image.read()).digest()
    if isinstance(image, Image.Image):
        return hashlib.sha256(f"{image.mode}\0{image.size}\0".encode() + image.tobytes()).digest()
    if isinstance(image, ShardMember):
        return _identity(image.path) + f"{image.member}\0{image.offset}\0{image.size}\0".encode()
    status = os.stat(str(image))
    return f"{image}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0".encode()
