"""An exported folder, computed by ONNX Runtime; it needs neither torch nor transformers.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioner.decoding.defaults import options_with
from captioner.decoding.numpy_search import search
from captioner.decoding.options import GenerationOptions
from captioner.errors import CaptionerError
from captioner.infer.calibration import Calibration
from captioner.infer.caption import Caption, CaptionMaker, likely_tags
from captioner.infer.export_format import FORMAT_VERSION, MODEL_TYPE
from captioner.infer.tokenizer import load_tokenizer
from captioner.model.preprocessing import Preprocessing

try:
    import onnxruntime
    from onnxruntime import OrtValue
except ModuleNotFoundError as error:
    raise CaptionerError("an exported model needs ONNX Runtime: pip install 'captioner[export]'") from error


ONLY_WHAT_IS_FETCHED = onnxruntime.RunOptions()
ONLY_WHAT_IS_FETCHED.only_execute_path_to_fetches = True
"""Attention, which only explanations read, costs captioning nothing."""


class Encoded(NamedTuple):
    """Images as the decoder reads them: its cross-attention inputs by name, and tag logits [B, C]."""

    states: dict[str, OrtValue]
    tag_logits: np.ndarray


class ExportedModel:
    """An exported folder, loaded: preprocessing, tokenizer and both graphs.

    Attributes:
        precision: the one that the model was exported in.
        start, end: the tokens that begin and end every sequence.
        longest: most tokens of a caption, including its prefix and the end of sequence.
        defaults: fields of `GenerationOptions` that the model's `generation_config.json` sets.
    """

    def __init__(self, folder: Path, num_threads: int) -> None:
        """Read a folder that `captioner export` wrote, to compute with so many threads.

        Raises:
            CaptionerError: no exported model, one of another format, or files that cannot be read.
        """
        if not (folder / "config.json").is_file():
            raise CaptionerError(f"{folder}: not an exported model; `captioner export` makes one")
        with _reading(folder / "config.json") as config:
            if config.get("model_type") != MODEL_TYPE:
                raise ValueError("not that of an exported model; `captioner export` makes one")
            if (version := config.get("format_version")) != FORMAT_VERSION:
                raise ValueError(f"exported in format {version!r}, and this captioner reads {FORMAT_VERSION}")
            self.longest, self.tags = int(config["max_position_embeddings"]), list(config["tags"])
            image_tokens = config.get("image_tokens", {})
            self.num_prefix_tokens, self.grid = int(image_tokens.get("prefix", 0)), image_tokens.get("grid")
            self.problem_type, self.precision = config["problem_type"], config["precision"]
            if self.longest < 1:
                raise ValueError(f"max_position_embeddings {self.longest} leave no room for a caption")
        self.tokenizer = load_tokenizer(folder)
        self.calibration = Calibration.load(folder)
        # An encoder's threads that spin after their work would take the cores from the decoder's.
        self.encoder = Graph(folder / "encoder.onnx", num_threads, spinning=False)
        self.decoder = Graph(folder / "decoder.onnx", num_threads, spinning=True)
        given = {name: shape for name, shape in self.encoder.outputs.items() if name != "tag_logits"}
        if given != {name: shape for name, shape in self.decoder.inputs.items() if name.startswith("cross_")}:
            raise CaptionerError(f"{folder}: encoder.onnx and decoder.onnx are not of one model")
        if len(self.tags) != (seen := self.encoder.outputs.get("tag_logits", (0, 0))[1]):
            raise CaptionerError(f"{folder / 'config.json'}: {len(self.tags)} tags, and encoder.onnx has {seen}")
        with _reading(folder / "processor_config.json") as settings:
            self.preprocessing = Preprocessing(**settings["image_processor"])
            if (size := self.preprocessing.image_size) != (taken := self.encoder.inputs["pixel_values"][2]):
                raise ValueError(f"image_size {size}, and encoder.onnx takes {taken}")
        with _reading(folder / "generation_config.json") as self.defaults:
            self.start, self.end = self.defaults.pop("decoder_start_token_id"), self.defaults.pop("eos_token_id")
            for token in (self.start, self.end):
                if token not in range(self.decoder.vocab_size):
                    raise ValueError(f"token {token!r}; decoder.onnx has those from 0 to {self.decoder.vocab_size - 1}")
            self.max_steps(options_with(self.defaults, {}))

    def max_steps(self, options: GenerationOptions) -> int:
        """Return the most new tokens of a caption.

        Raises:
            CaptionerError: this model cannot do what the options ask for.
        """
        if options.force_words_ids or options.num_beam_groups > 1:
            name = "forced words" if options.force_words_ids else "num_beam_groups"
            raise CaptionerError(f"an exported model has no {name}; the model it was made from has")
        return options.max_steps(self.longest, self.decoder.vocab_size, self.end)

    def decode(self, encoded: Sequence[Encoded], options: GenerationOptions) -> list[Caption]:
        """Caption what was encoded, in one batch or several, together: a step of the decoder costs little more for them
        all than for one of them."""
        names = encoded[0].states
        states = {name: _joined([images.states[name] for images in encoded]) for name in names}
        tag_logits = np.concatenate([images.tag_logits for images in encoded])
        decoder = DecoderSteps(self.decoder, states)
        make = CaptionMaker(self.tokenizer, options, self.calibration)
        steps = self.max_steps(options)
        found = search(decoder, len(tag_logits), make.search_options, steps, self.start, self.end)
        tags = [likely_tags(row, self.tags, self.problem_type) for row in tag_logits]
        return [make(group, seen) for group, seen in zip(found, tags, strict=True)]

    def token_maps(self, pixel_values: np.ndarray, token_ids: Sequence[int]) -> np.ndarray:
        """Attention [T, R, C] over the grid of an image [1, 3, height, width], for each token of its caption.

        Raises:
            CaptionerError: the export has no attention: its decoder has no cross-attention, or an earlier version of
            captioner wrote it.
        """
        if "attention" not in self.decoder.outputs or not self.grid:
            raise CaptionerError(
                f"{self.decoder.path}: has no attention output; export again a model with cross-attention"
            )
        decoder, row = DecoderSteps(self.decoder, self.encode(pixel_values).states), np.zeros((1, 1), np.int64)
        steps = [decoder.attention(np.array([[token]]), row) for token in (self.start, *token_ids[:-1])]
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
        inputs, outputs: shapes by name, free dimensions by theirs.
    """

    def __init__(self, path: Path, num_threads: int, spinning: bool) -> None:
        """Read it.

        Raises:
            CaptionerError: it cannot be read.
        """
        self.path = path
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # nothing: errors are raised
        options.intra_op_num_threads = num_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        with self._explained():
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = {value.name: value.shape for value in self.session.get_outputs()}

    @property
    def vocab_size(self) -> int:
        """Of a decoder."""
        return self.outputs["logits"][2]

    def run(self, names: list[str], inputs: dict[str, OrtValue]) -> list[OrtValue]:
        """The outputs of these names, in ONNX Runtime's memory.

        Raises:
            CaptionerError: it does not go with these inputs, or with the memory there is.
        """
        with self._explained():
            return self.session.run_with_ort_values(names, inputs, ONLY_WHAT_IS_FETCHED)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # ONNX Runtime's own have no common base
            raise CaptionerError(f"{self.path}: {' '.join(str(error).split())[:300]}") from error


class DecoderSteps:
    """The decoder with its caches, which stay in ONNX Runtime's memory: the `Decoder` of `search`."""

    def __init__(self, graph: Graph, cross_states: dict[str, OrtValue]) -> None:
        """`cross_states`: 2 L arrays [B, P, D], one for an image however many its captions."""
        self.graph = graph
        self.cross_states = cross_states
        self.vocab_size = graph.vocab_size
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


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any]]:
    """A JSON file's content; what is wrong with it is told with the file's name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        yield content
    except OSError as error:
        raise CaptionerError(f"{path}: {error.strerror}") from error
    except KeyError as error:
        raise CaptionerError(f"{path}: without {error}") from error
    except (TypeError, ValueError, CaptionerError) as error:
        raise CaptionerError(f"{path}: {error}") from error
