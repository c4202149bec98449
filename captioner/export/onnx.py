"""Write a model as an exported folder: `captioner export`.

Shapes: B images, K captions an image, T tokens so far, P image tokens, L layers, H heads, D width, V vocabulary.
"""

import json
import logging
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from captioner.convert import as_captioner
from captioner.decoding.defaults import generation_defaults, options_with
from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.adapters import merge_adapter
from captioner.hub.card import read_card, write_card
from captioner.hub.find import find_model
from captioner.hub.load import load_model
from captioner.infer.calibration import FILE as CALIBRATION
from captioner.infer.export_format import FORMAT_VERSION, MODEL_TYPE, is_export
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration
from captioner.model.processing_captioner import CaptionerProcessor
from captioner.model.tokenization_captioner import CaptionerTokenizer

try:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    from captioner.export import graphs, int8
    from captioner.export.rewrites import split_projections, untie
    from captioner.infer.exported_model import DecoderSteps, ExportedModel
except ModuleNotFoundError as error:
    if error.name not in ("onnx", "onnxscript", "onnxruntime"):
        raise
    raise CaptionerError(f"export needs {error.name}: pip install 'captioner[export]'") from error

OPSET = 23
LOGITS_TOLERANCE = 1e-4
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
        if is_export(folder):
            raise CaptionerError(f"{name}: exported already; export the model it was made from")
        folder = as_captioner(folder, name)
        card = read_card(folder, name)
        network, processor = load_model(folder, name)
        if adapter is not None:
            name = f"{name} with {merge_adapter(network, adapter)}"
        network.eval()
        _write_settings(partial, network, processor, name, precision)
        if (folder / CALIBRATION).is_file():
            shutil.copy(folder / CALIBRATION, partial / CALIBRATION)
        _write_graphs(partial, network, precision)
        for graph in ("encoder.onnx", "decoder.onnx"):
            _convert(partial / graph, precision)
        agreement = compare(network, ExportedModel(partial, torch.get_num_threads()))
        if agreement.equal_tokens < EQUAL_TOKENS[precision] or (
            precision == "fp32" and agreement.difference > LOGITS_TOLERANCE
        ):
            raise CaptionerError(
                f"{name}: not exported, since the {precision} export disagrees with it: {agreement.equal_tokens:.1%} "
                f"of greedy tokens are equal, logits differ by up to {agreement.difference:.1e}"
            )
        write_card(partial, _card(name, output.name, precision, agreement), card, name)
    return agreement


def compare(model: CaptionerForConditionalGeneration, exported: ExportedModel, batch_size: int = 4) -> Agreement:
    """Caption random images greedily with the export, and have the model predict each of those tokens again.

    Where the model's most probable next token is the export's at every step, its own greedy captions are the same.
    """
    generator = np.random.default_rng(0)
    size = model.config.image_size
    pixel_values = generator.standard_normal((batch_size, 3, size, size), dtype=np.float32)
    states, tag_logits = exported.encode(pixel_values)
    decoder = DecoderSteps(exported.decoder, states)
    token_ids, rows = np.full((batch_size, 1), exported.start), np.arange(batch_size)[:, None]
    steps = []
    for _ in range(exported.max_steps(options_with(exported.defaults, {}))):
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


def _write_graphs(folder: Path, model: CaptionerForConditionalGeneration, precision: str) -> None:
    """encoder.onnx and decoder.onnx, weights in fp32."""
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
    )


def _write_graph(
    path: Path,
    graph: nn.Module,
    example: tuple[Tensor | list[Tensor], ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[Any, ...],
    attention: Callable[..., Any],
) -> None:
    try:
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: attention},
            external_data=False,
            verbose=False,
        )
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


def _write_settings(
    folder: Path, model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, name: str, precision: str
) -> None:
    """The tokenizer, the preprocessing, how to search, and what the folder is."""
    config = model.config
    settings = {
        "processor_config.json": {"image_processor": asdict(processor.image_processor.preprocessing)},
        "generation_config.json": {
            "decoder_start_token_id": config.decoder_start_token_id,
            "eos_token_id": config.eos_token_id,
            **generation_defaults(model.generation_config),
        },
        "config.json": {
            "model_type": MODEL_TYPE,
            "format_version": FORMAT_VERSION,
            "precision": precision,
            "opset": OPSET,
            "source_model": name,
            "max_position_embeddings": config.max_position_embeddings,
            "tags": config.tags,
            "problem_type": config.problem_type,
            "image_tokens": {"prefix": model.encoder.trunk.num_prefix_tokens, "grid": _grid(model)},
        },
    }
    for file, content in settings.items():
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if isinstance(processor.tokenizer, CaptionerTokenizer):
        shutil.copy(processor.tokenizer.vocab_file, folder / "tokenizer.model")
    else:
        processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


@torch.inference_mode()
def _grid(model: CaptionerForConditionalGeneration) -> tuple[int, int]:
    """Rows and columns of the image tokens."""
    size = model.config.image_size
    _, grid = model.encoder.trunk(torch.zeros(1, 3, size, size))
    return grid


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
