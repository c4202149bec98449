"""Write a model as an exported folder: `captioner export`.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captioner.convert import as_captioner
from captioner.decoding.defaults import options_with
from captioner.errors import CaptionerError
from captioner.files import new_folder, reporting, whole_file
from captioner.hub.adapters import merge_adapter
from captioner.hub.card import read_card, write_card
from captioner.hub.find import find_model
from captioner.hub.load import load_model
from captioner.infer.calibration import FILE as CALIBRATION
from captioner.infer.export_format import FORMAT, FORMAT_VERSION, GRAPHS, WEIGHTS, Graphs, is_export
from captioner.infer.model_settings import read_settings
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

try:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel
    from onnxscript import optimizer

    from captioner.export import graphs, int8
    from captioner.export.rewrites import compute_on_request, split_projections, untie
    from captioner.export.stored_weights import read_weights_from
    from captioner.infer.exported_model import ExportedModel
except ModuleNotFoundError as error:
    if error.name not in ("onnx", "onnxscript", "onnxruntime"):
        raise
    raise CaptionerError(f"export needs {error.name}: pip install 'captioner[export]'") from error

OPSET = 23
LOGITS_TOLERANCE = 1e-4
SETTINGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    CALIBRATION,
)
"""The files of a model's folder that an exported folder has too."""

EQUAL_TOKENS = {"fp32": 1.0, "fp16": 0.98, "int8": 0.9}
"""By precision: the share of greedy tokens that must be the model's own, given the same tokens before."""


class Agreement(NamedTuple):
    """How an export compares with its model: the largest difference of logits, of tokens and tags, and the share of
    equal greedy tokens."""

    difference: float
    equal_tokens: float


def export_model(
    model: str | Path, output: Path, precision: str = "fp32", adapter: str | Path | None = None
) -> Agreement:
    """Write a model (as `Captioner.from_pretrained` finds it), with an adapter merged into it if one is named, as the
    folder `output`, whole or not at all.

    fp32 is exact; fp16 halves the files and computes in half precision where ONNX Runtime can; int8 quantises the
    weights of matrix products by channel, and their inputs as they come (convolutions stay in fp32).

    Raises:
        CaptionerError: `output` is there already, there is no such model, it cannot be expressed in ONNX, or the
            exported model disagrees with it: with fp32 a logit by more than 1e-4 or one greedy token of random images,
            with fp16 more than 2 % of the tokens, with int8 more than 10 %.
    """
    if precision not in EQUAL_TOKENS:
        raise CaptionerError(f"precision {precision!r}: choose {', '.join(EQUAL_TOKENS)}")
    with new_folder(output) as partial:
        folder, name = find_model(model)
        folder = _model_folder(folder, name)
        card, network = read_card(folder, name), load_model(folder, name)[0].eval()
        if adapter is not None:
            name = f"{name} with {merge_adapter(network, adapter)}"
        for file in SETTINGS:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, partial / file)
        _write_graphs(partial, network, precision)
        for graph in GRAPHS:
            _convert(partial / graph, precision)
            _compute_attention_on_request(partial / graph)
        written = Graphs(partial, precision, None, *_image_tokens(network))
        agreement = _check(network, written, partial, name)
        _write_format(written, partial, name)
        write_card(partial, _card(name, output.name, precision, agreement), card, name)
    return agreement


def export_in_place(model: str | Path) -> Agreement:
    """Write fp32 graphs into a model's folder. They read the folder's `model.safetensors`.

    Raises:
        CaptionerError: there is no such model, it cannot be expressed in ONNX, its weights are in several files, the
            graphs disagree with it as in `export_model`, or the folder cannot be written.
    """
    folder, name = find_model(model)
    folder = _model_folder(folder, name)
    network, weights = load_model(folder, name)[0].eval(), folder / WEIGHTS
    with reporting(folder):
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        with tempfile.TemporaryDirectory(prefix="graphs.", dir=folder) as temporary:
            partial = Path(temporary)
            _write_graphs(partial, network, "fp32", fuses=False)
            for graph in GRAPHS:
                _convert(partial / graph, "fp32")
                read_weights_from(partial / graph, weights)
                _compute_attention_on_request(partial / graph)
            (partial / WEIGHTS).symlink_to(weights.resolve())
            written = Graphs(partial, "fp32", digest, *_image_tokens(network))
            agreement = _check(network, written, folder, name)
            (folder / FORMAT).unlink(missing_ok=True)  # in force again when both graphs are there
            for graph in GRAPHS:
                (partial / graph).replace(folder / graph)
        _write_format(written, folder, name)
    return agreement


def _model_folder(folder: Path, name: str) -> Path:
    if is_export(folder):
        raise CaptionerError(f"{name}: exported already; export the model it was made from")
    return as_captioner(folder, name)


def _write_format(graphs: Graphs, folder: Path, name: str) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "precision": graphs.precision,
        "opset": OPSET,
        "source_model": name,
        "weights": graphs.weights_digest,
        "image_tokens": {"prefix": graphs.num_prefix_tokens, "grid": graphs.grid},
    }
    with whole_file(folder / FORMAT) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _check(network: CaptionerForConditionalGeneration, graphs: Graphs, settings: Path, name: str) -> Agreement:
    """Compare graphs, with the settings of a folder, with the network that they were made from.

    Raises:
        CaptionerError: they disagree.
    """
    agreement = compare(network, ExportedModel(graphs, read_settings(settings), torch.get_num_threads()))
    if agreement.equal_tokens < EQUAL_TOKENS[graphs.precision] or (
        graphs.precision == "fp32" and agreement.difference > LOGITS_TOLERANCE
    ):
        raise CaptionerError(
            f"{name}: not exported, since the {graphs.precision} export disagrees with it: "
            f"{agreement.equal_tokens:.1%} of greedy tokens are equal, logits differ by up to "
            f"{agreement.difference:.1e}"
        )
    return agreement


def compare(model: CaptionerForConditionalGeneration, exported: ExportedModel, batch_size: int = 4) -> Agreement:
    """Caption random images greedily with the export, and have the model predict each of those tokens again.

    Where the model's most probable next token is the export's at every step, its own greedy captions are the same.
    """
    generator = np.random.default_rng(0)
    size = model.config.image_size
    pixel_values = generator.standard_normal((batch_size, 3, size, size), dtype=np.float32)
    states, tag_logits = exported.encode(pixel_values)
    decoder, settings = exported.steps(states), exported.settings
    token_ids, rows = np.full((batch_size, 1), settings.start), np.arange(batch_size)[:, None]
    steps = []
    for _ in range(settings.max_steps(options_with(settings.defaults, {}))):
        steps.append(decoder.logits(token_ids[:, -1:], rows)[:, 0])
        token_ids = np.concatenate([token_ids, steps[-1].argmax(-1)[:, None]], axis=1)
    logits = np.stack(steps, axis=1)
    with torch.inference_mode():
        images, captions = torch.from_numpy(pixel_values), torch.from_numpy(token_ids[:, :-1])
        outputs = model(pixel_values=images, decoder_input_ids=captions)
        head = model.heads.tags
        expected_tags = tag_logits if head is None else head(outputs.encoder_last_hidden_state).numpy()
    expected = outputs.logits.numpy()
    difference = max(np.abs(logits - expected).max(), np.abs(tag_logits - expected_tags).max(initial=0))
    return Agreement(float(difference), float((logits.argmax(-1) == expected.argmax(-1)).mean()))


def _write_graphs(folder: Path, model: CaptionerForConditionalGeneration, precision: str, fuses: bool = True) -> None:
    """Write encoder.onnx and decoder.onnx, weights in fp32; without `fuses`, constants are the model's own weights."""
    config = model.config
    layers = config.num_hidden_layers
    pixel_values = torch.randn(2, 3, config.image_size, config.image_size)
    form = int8 if precision == "int8" else graphs
    encoder, decoder = form.EncoderGraph(model).eval(), form.DecoderGraph(model).eval()
    with torch.no_grad():
        cross_states = list(encoder(pixel_values)[: layers * len(encoder.STATES)])
    # Sizes of the example differ from each other and from 1: none is taken for another, or for a constant.
    self_states = [torch.randn(4, 5, config.hidden_size) for _ in range(2 * layers)]
    token_ids = torch.ones(2, 3, dtype=torch.long)
    batch, captions = torch.export.Dim("batch"), torch.export.Dim("captions")
    past = torch.export.Dim("past", max=config.max_position_embeddings - 1)
    cross_names = [f"cross_{part}_{index}" for index in range(layers) for part in encoder.STATES]
    self_names = [f"self_{part}_{index}" for index in range(layers) for part in ("key", "value")]
    tag_names = ["tag_logits"] if config.tags else []
    attention_names = [] if config.image_prefix else ["attention"]
    _write_graph(
        folder / "encoder.onnx",
        encoder,
        (pixel_values,),
        ["pixel_values"],
        cross_names + tag_names,
        ({0: batch},),
        form.attention,
        fuses,
    )
    _write_graph(
        folder / "decoder.onnx",
        decoder,
        (token_ids, torch.zeros_like(token_ids), torch.tensor(7), self_states, cross_states),
        ["input_ids", "rows", "num_candidates", *self_names, *cross_names],
        ["logits", "token_ids", "log_probs", *attention_names, *(f"new_{name}" for name in self_names)],
        (
            {0: batch, 1: captions},
            {0: batch, 1: captions},
            None,
            [{0: torch.export.Dim("rows"), 1: past}] * len(self_names),
            [{0: batch}] * len(cross_names),
        ),
        form.attention,
        fuses,
    )


def _write_graph(
    path: Path,
    graph: nn.Module,
    example: tuple[Tensor | list[Tensor], ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[Any, ...],
    attention: Callable[..., Any],
    fuses: bool = True,
) -> None:
    try:
        program = torch.onnx.export(
            graph,
            example,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention},
            optimize=fuses,
            verbose=False,
        )
        assert program is not None
        if not fuses:
            for _ in range(2):  # the first makes constants for the second
                optimizer.fold_constants_ir(program.model)
                optimizer.remove_unused_nodes(program.model)
        program.save(path)
    except (torch.onnx.errors.OnnxExporterError, ValueError) as error:  # ValueError: more than 2 GB
        raise CaptionerError(f"{path.stem} cannot be expressed in ONNX: {textwrap.shorten(str(error), 300)}") from error


def _convert(path: Path, precision: str) -> None:
    """From fp32 to another precision, in place; checked."""
    if precision == "fp16":
        half = OnnxModel(convert_float_to_float16(onnx.load(path), keep_io_types=True))
        half.topological_sort()  # the conversion appends its casts at the end
        onnx.save(half.model, path)
    if precision == "int8":
        whole = onnx.load(path)
        split_projections(OnnxModel(whole))
        untie(whole.graph)
        whole.graph.ClearField("value_info")  # shapes are inferred anew: quantisation transposes weights
        add_pre_process_metadata(whole)  # what else that would do, torch's exporter did
        products = ["MatMul", "Gemm"]
        logging.disable(logging.WARNING)  # attention in int8 makes it warn of a model quantised before
        try:
            quantize_dynamic(whole, path, products, per_channel=True, weight_type=QuantType.QInt8)
        finally:
            logging.disable(logging.NOTSET)
    onnx.checker.check_model(path, full_check=True)
    opsets = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
    if opsets[""] != OPSET:
        raise CaptionerError(f"{path.stem} came out in opset {opsets['']}, not {OPSET}")


def _compute_attention_on_request(path: Path) -> None:
    """Only explanations read it."""
    model = onnx.load(path, load_external_data=False)
    compute_on_request(model.graph, "attention")
    path.write_bytes(model.SerializeToString())


@torch.inference_mode()
def _image_tokens(model: CaptionerForConditionalGeneration) -> tuple[int, tuple[int, int]]:
    """How many image tokens stand before those of the grid, and the grid's rows and columns."""
    size = model.config.image_size
    _, grid = model.encoder.trunk(torch.zeros(1, 3, size, size))
    return model.encoder.trunk.num_prefix_tokens, grid


def _card(name: str, folder: str, precision: str, agreement: Agreement) -> str:
    return f"""# {name}, exported to ONNX ({precision})

Written by `captioner export`: `encoder.onnx` (pixel values -> keys and values of the decoder's cross-attention) and
`decoder.onnx` (one step with caches), opset {OPSET}. On random images {agreement.equal_tokens:.1%} of the greedy tokens
are those of the model it was made from, and logits differ by at most {agreement.difference:.1e}.

```python
from captioner import Captioner  # for an exported model, it imports neither torch nor transformers

print(Captioner.from_pretrained("{folder}")("photo.jpg").text)
```
"""
