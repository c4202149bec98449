"""A model's ONNX graphs, computed by ONNX Runtime; they need neither torch nor transformers.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from onnxruntime import OrtValue

from captioner.decoding.numpy_search import search
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.caption import Caption, CaptionMaker, likely_tags
from captioner.infer.export_format import WEIGHTS, Graphs
from captioner.infer.model_settings import ModelSettings


class Encoded(NamedTuple):
    """Images as the decoder reads them: its cross-attention inputs by name, and tag logits [B, C]."""

    states: dict[str, OrtValue]
    tag_logits: np.ndarray


class ExportedModel:
    """The graphs of a model, loaded to compute with so many threads."""

    def __init__(self, graphs: Graphs, settings: ModelSettings, num_threads: int) -> None:
        """Load the graphs.

        Raises:
            CaptionerError: a file cannot be read, or does not fit the others.
        """
        self.settings = settings
        self.num_prefix_tokens, self.grid = graphs.num_prefix_tokens, graphs.grid
        # Threads of the encoder that spin after their work would take the cores from the decoder's.
        self.encoder = Graph(graphs, "encoder.onnx", num_threads, spinning=False)
        self.decoder = Graph(graphs, "decoder.onnx", num_threads, spinning=True)
        self._check(graphs.folder)

    def _check(self, folder: Path) -> None:
        given = {name: shape for name, shape in self.encoder.outputs.items() if name != "tag_logits"}
        if given != {name: shape for name, shape in self.decoder.inputs.items() if name.startswith("cross_")}:
            raise CaptionerError(f"{folder}: encoder.onnx and decoder.onnx are not of one model")
        config, tags = folder / "config.json", len(self.settings.tags)
        if tags != (seen := self.encoder.outputs.get("tag_logits", (0, 0))[1]):
            raise CaptionerError(f"{config}: {tags} tags, and encoder.onnx has {seen}")
        if (size := self.settings.vocab_size) != (known := self.decoder.outputs["logits"][2]):
            raise CaptionerError(f"{config}: vocab_size {size}, and decoder.onnx has {known} tokens")
        if (size := self.settings.preprocessing.image_size) != (taken := self.encoder.inputs["pixel_values"][2]):
            raise CaptionerError(
                f"{folder / 'processor_config.json'}: image_size {size}, and encoder.onnx takes {taken}"
            )

    def decode(self, encoded: Sequence[Encoded], options: GenerationOptions) -> list[Caption]:
        """Caption what was encoded, in one batch or several, together: a step of the decoder costs little more for them
        all than for one of them."""
        names = encoded[0].states
        states = {name: _joined([images.states[name] for images in encoded]) for name in names}
        tag_logits = np.concatenate([images.tag_logits for images in encoded])
        decoder, settings = self.steps(states), self.settings
        make = CaptionMaker(settings.tokenizer, options, settings.calibration)
        steps = settings.max_steps(options)
        found = search(decoder, len(tag_logits), make.search_options, steps, settings.start, settings.end)
        tags = [likely_tags(row, settings.tags, settings.problem_type) for row in tag_logits]
        return [make(group, seen) for group, seen in zip(found, tags, strict=True)]

    def steps(self, states: dict[str, OrtValue]) -> "DecoderSteps":
        """Begin to decode images, given what the decoder reads of them."""
        return DecoderSteps(self.decoder, states, self.settings.vocab_size)

    def token_maps(self, pixel_values: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
        """Attention [T, R, C] over the grid of an image [1, 3, height, width], for each token of its caption.

        Raises:
            CaptionerError: the graph has no attention, because its decoder has no cross-attention.
        """
        if "attention" not in self.decoder.outputs:
            raise CaptionerError(f"{self.decoder.path}: has no attention; only a model with cross-attention does")
        decoder, row = self.steps(self.encode(pixel_values).states), np.zeros((1, 1), np.int64)
        steps = [decoder.attention(np.array([[token]]), row) for token in (self.settings.start, *token_ids[:-1])]
        return np.concatenate(steps)[:, 0, self.num_prefix_tokens :].reshape(-1, *self.grid)

    def encode(self, pixel_values: np.ndarray) -> Encoded:
        """Pixels [B, 3, height, width] -> what the decoder reads of them."""
        names = list(self.encoder.outputs)
        pixels = OrtValue.ortvalue_from_numpy(pixel_values)
        outputs = dict(zip(names, self.encoder.run(names, {"pixel_values": pixels}), strict=True))
        tag_logits = outputs.pop("tag_logits", None)
        no_tags = np.empty((len(pixel_values), 0), np.float32)
        return Encoded(outputs, no_tags if tag_logits is None else tag_logits.numpy())


class Graph:
    """A graph in a file, ready to run.

    Attributes:
        inputs, outputs: shapes by name; a free dimension is its name.
    """

    def __init__(self, graphs: Graphs, name: str, num_threads: int, spinning: bool) -> None:
        """Load the file `name` of a folder's graphs.

        Raises:
            CaptionerError: it cannot be read.
        """
        self.path = graphs.folder / name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # nothing: errors are raised
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        if graphs.weights is not None:
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [graphs.weights], [len(graphs.weights)])
        with self._explained():
            self.session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = {value.name: value.shape for value in self.session.get_outputs()}

    def run(self, names: list[str], inputs: dict[str, OrtValue]) -> list[OrtValue]:
        """The outputs of these names, in ONNX Runtime's memory.

        Raises:
            CaptionerError: it does not go with these inputs, or with the memory there is.
        """
        with self._explained():
            return self.session.run_with_ort_values(names, inputs)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ONNX Runtime's own have no common base
            raise CaptionerError(f"{self.path}: {' '.join(str(error).split())[:300]}") from error


class DecoderSteps:
    """The decoder with its caches, which stay in ONNX Runtime's memory: the `Decoder` of `search`."""

    def __init__(self, graph: Graph, cross_states: dict[str, OrtValue], vocab_size: int) -> None:
        """`cross_states`: 2 L arrays [B, P, D], one for an image however many its captions."""
        self.graph = graph
        self.cross_states = cross_states
        self.vocab_size = vocab_size
        images = next(iter(cross_states.values())).shape()[0]
        self.self_states: dict[str, OrtValue] = {}  # [B, 0, D] at first, then [B * K, T, D]
        for name, shape in graph.inputs.items():
            if name.startswith("self_"):
                empty = np.zeros((images, 0, shape[2]), dtype=np.float32)
                self.self_states[name] = OrtValue.ortvalue_from_numpy(empty)

    def step(self, token_ids: np.ndarray, rows: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray]:
        """The newest tokens [B, K], each behind what row `rows[b, k]` of the step before has -> the most probable next
        tokens and their log-probabilities, both [B, K, `num_candidates`], best first."""
        next_ids, log_probs = self._run(["token_ids", "log_probs"], token_ids, rows, num_candidates)
        return next_ids, log_probs

    def logits(self, token_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As `step`, all logits [B, K, V]."""
        (logits,) = self._run(["logits"], token_ids, rows, 1)
        return logits

    def attention(self, token_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As `step`, the cross-attention's weights [B, K, P], mean over heads and layers."""
        (weights,) = self._run(["attention"], token_ids, rows, 1)
        return weights

    def _run(self, names: list[str], token_ids: np.ndarray, rows: np.ndarray, num_candidates: int) -> list[np.ndarray]:
        count = np.array(min(num_candidates, self.vocab_size))
        arrays = {"input_ids": token_ids, "rows": rows, "num_candidates": count}
        if "with_attention" in self.graph.inputs:
            arrays["with_attention"] = np.array("attention" in names)
        inputs = {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        wanted = [*names, *(f"new_{name}" for name in self.self_states)]
        results = self.graph.run(wanted, {**inputs, **self.self_states, **self.cross_states})
        self.self_states = dict(zip(self.self_states, results[len(names) :], strict=True))
        return [result.numpy() for result in results[: len(names)]]

    def keep(self, images: list[int]) -> None:
        """Only these of the B images go on."""
        self.cross_states = {
            name: OrtValue.ortvalue_from_numpy(state.numpy()[images]) for name, state in self.cross_states.items()
        }


def _joined(parts: list[OrtValue]) -> OrtValue:
    return parts[0] if len(parts) == 1 else OrtValue.ortvalue_from_numpy(np.concatenate([x.numpy() for x in parts]))
