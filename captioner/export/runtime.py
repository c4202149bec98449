"""Captions from an exported folder, with NumPy, Pillow, ONNX Runtime and the library of its tokenizer alone.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from PIL import Image

from captioner.errors import CaptionerError
from captioner.export.format import FORMAT_VERSION, is_export
from captioner.export.search import Beam, SearchOptions, search
from captioner.export.tokenizer import load_tokenizer
from captioner.infer.caption import Caption, ImageInput, Tag, Token, likely_tags, pixel_batches
from captioner.model.preprocessing import Preprocessing


class ExportedCaptioner:
    """An exported model, ready to caption.

    Example:
        >>> cap = ExportedCaptioner("exported")
        >>> cap("photo.jpg", num_beams=5).text
    """

    def __init__(self, folder: str | Path, num_threads: int | None = None) -> None:
        """Read a folder that `captioner export` wrote.

        Args:
            num_threads: for computing; default: one a core.

        Raises:
            CaptionerError: no exported model, one of another format, or files that cannot be read.
        """
        folder = Path(folder).expanduser()
        if not is_export(folder):
            raise CaptionerError(f"{folder}: not an exported model; `captioner export` makes one")
        self.config = _read_json(folder, "config.json")
        if self.config.get("format_version") != FORMAT_VERSION:
            version = self.config.get("format_version")
            raise CaptionerError(f"{folder}: exported in format {version}, and this captioner reads {FORMAT_VERSION}")
        try:
            self.preprocessing = Preprocessing(**_read_json(folder, "processor_config.json")["image_processor"])
            defaults = _read_json(folder, "generation_config.json")
            self.start, self.end = defaults.pop("decoder_start_token_id"), defaults.pop("eos_token_id")
            self.defaults = SearchOptions(**defaults)
            self.tokenizer = load_tokenizer(folder)
            # An encoder's threads that spin after their work would take the cores from the decoder's.
            self.encoder = _session(folder / "encoder.onnx", num_threads, spinning=False)
            self.decoder = _session(folder / "decoder.onnx", num_threads, spinning=True)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CaptionerError(f"{folder}: cannot be read as an exported model: {reason}") from error

    @overload
    def __call__(self, images: ImageInput, *, batch_size: int = ..., **options: Any) -> Caption: ...
    @overload
    def __call__(self, images: Sequence[ImageInput], *, batch_size: int = ..., **options: Any) -> list[Caption]: ...
    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 16, **options: Any
    ) -> Caption | list[Caption]:
        """Caption one image, or a list of images: paths, the bytes of image files, or Pillow images.

        Args:
            options: fields of `SearchOptions`; defaults are the folder's own.

        Raises:
            ImageError: an image cannot be read; the message names it.
            CaptionerError: an option is unknown or out of range.
        """
        if isinstance(images, (str, bytes, Path, Image.Image)):
            return self([images], batch_size=batch_size, **options)[0]
        batches = pixel_batches(images, self.preprocessing, batch_size)
        known = asdict(self.defaults)
        if unknown := options.keys() - known:
            raise CaptionerError(f"unknown option {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        chosen = SearchOptions(**known | options)
        return [caption for pixel_values in batches for caption in self.caption(pixel_values, chosen)]

    def caption(self, pixel_values: np.ndarray, options: SearchOptions) -> list[Caption]:
        """Caption a batch of preprocessed images, float32 [B, 3, height, width]."""
        states, tag_logits = self.encode(pixel_values)
        longest = self.config["max_position_embeddings"]
        if options.min_new_tokens > longest:
            raise CaptionerError(
                f"min_new_tokens is {options.min_new_tokens}; this model writes at most {longest} tokens"
            )
        options = replace(options, max_new_tokens=min(options.max_new_tokens, longest))
        steps = DecoderSteps(self.decoder, states, options.num_beams)
        found = search(steps, len(pixel_values), options, self.start, self.end)
        names, problem_type = self.config["tags"], self.config["problem_type"]
        tags = [likely_tags(row, names, problem_type) for row in tag_logits]
        return [self._caption(group, seen) for group, seen in zip(found, tags, strict=True)]

    def encode(self, pixel_values: np.ndarray) -> tuple[dict[str, OrtValue], np.ndarray]:
        """Pixels [B, 3, height, width] -> the decoder's cross-attention inputs by name, and tag logits [B, C]."""
        names = [output.name for output in self.encoder.get_outputs()]
        pixels = OrtValue.ortvalue_from_numpy(pixel_values)
        outputs = dict(zip(names, self.encoder.run_with_ort_values(names, {"pixel_values": pixels}), strict=True))
        tag_logits = outputs.pop("tag_logits", None)
        return outputs, np.empty((len(pixel_values), 0), np.float32) if tag_logits is None else tag_logits.numpy()

    def _caption(self, found: list[Beam], tags: tuple[Tag, ...] = ()) -> Caption:
        best, *others = found
        words = [index for index in best.token_ids if index != self.end]
        return Caption(
            text=" ".join(self.tokenizer.decode(words).split()),
            confidence=math.exp(sum(best.log_probs) / len(best.log_probs)),
            tokens=tuple(
                Token(self.tokenizer.id_to_token(index), log_prob)
                for index, log_prob in zip(words, best.log_probs, strict=False)
            ),
            alternatives=tuple(self._caption([other]) for other in others),
            tags=tags,
        )


class DecoderSteps:
    """The decoder's session with its caches, which stay in ONNX Runtime's memory: the `Decoder` of `search`."""

    def __init__(self, session: onnxruntime.InferenceSession, cross_states: dict[str, OrtValue], beams: int) -> None:
        """`cross_states`: 2 L arrays [B, P, D], one for an image however many its beams."""
        self.session = session
        self.cross_states = cross_states
        self.vocab_size = session.get_outputs()[0].shape[2]
        rows = beams * next(iter(cross_states.values())).shape()[0]
        self.self_states: dict[str, OrtValue] = {}  # [B * K, T, D]
        for given in session.get_inputs():
            if given.name.startswith("self_"):
                empty = np.zeros((rows, 0, given.shape[2]), dtype=np.float32)
                self.self_states[given.name] = OrtValue.ortvalue_from_numpy(empty)

    def step(self, token_ids: np.ndarray, rows: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """The newest tokens [B, K], each behind what row `rows[b, k]` of the step before has -> the most probable next
        tokens and their log-probabilities, both [B, K, `num_candidates`], best first."""
        next_ids, log_probs = self._run(["token_ids", "log_probs"], token_ids, rows, num_candidates)
        return next_ids, log_probs

    def logits(self, token_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As `step`, all logits [B, K, V]."""
        (logits,) = self._run(["logits"], token_ids, rows, 1)
        return logits

    def _run(self, names: list[str], token_ids: np.ndarray, rows: np.ndarray, num_candidates: int) -> list[np.ndarray]:
        count = np.array(min(num_candidates, self.vocab_size))
        arrays = {"input_ids": token_ids, "rows": rows, "num_candidates": count}
        inputs = {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        wanted = [*names, *(f"new_{name}" for name in self.self_states)]
        results = self.session.run_with_ort_values(wanted, {**inputs, **self.self_states, **self.cross_states})
        self.self_states = dict(zip(self.self_states, results[len(names) :], strict=True))
        return [result.numpy() for result in results[: len(names)]]

    def keep(self, images: list[int]) -> None:
        """Only these of the B images go on."""
        self.cross_states = {
            name: OrtValue.ortvalue_from_numpy(state.numpy()[images]) for name, state in self.cross_states.items()
        }


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: not a JSON object")
    return value


def _session(path: Path, num_threads: int | None, spinning: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = num_threads or 0  # 0: ONNX Runtime counts the cores
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own have no common base
        raise RuntimeError(f"{path.name}: {error}") from error
