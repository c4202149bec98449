"""Makes a graph read its weights from a model's safetensors file, which holds them once for torch and ONNX Runtime.

A safetensors file is a length in 8 bytes, a JSON header of so many bytes, and the tensors
(https://github.com/huggingface/safetensors#format). To ONNX it is external data, whose parts are named by offset and
length. Weights that are stored in half precision or transposed are converted by the graph, once when it is loaded.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
SMALLEST = 1024
"""Bytes below which a constant stays in the graph."""


class Stored(NamedTuple):
    """A tensor in a file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_weights_from(path: Path, weights: Path) -> None:
    """Replace the constants of a graph in fp32 that are tensors of a safetensors file by reads of that file, in place.

    The graph has to be in the folder of the weights when it is loaded. What the file does not have stays in the graph.
    """
    model = onnx.load(path)
    known = dict(_contents(weights))
    stored: dict[str, TensorProto] = {}
    kept: list[TensorProto] = []
    nodes: list[NodeProto] = []
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        found = known.get(_key(values)) if values.nbytes >= SMALLEST else None
        if found is None:
            kept.append(constant)
            continue
        tensor, is_transposed = found
        name = f"{tensor.name}, stored"
        stored[name] = _external(tensor, name, weights.name)
        converted = f"{constant.name}, as stored" if is_transposed else constant.name
        nodes.append(helper.make_node("Cast", [name], [converted], to=TensorProto.FLOAT))
        if is_transposed:
            nodes.append(helper.make_node("Transpose", [converted], [constant.name], perm=[1, 0]))
    nodes += model.graph.node
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*stored.values(), *kept])
    _strip(model)
    path.write_bytes(model.SerializeToString())


def _contents(weights: Path) -> Iterator[tuple[tuple[tuple[int, ...], bytes], tuple[Stored, bool]]]:
    """Yield every tensor of floats, and every matrix transposed, by its values in fp32."""
    data = np.memmap(weights, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in TYPES:
            continue
        first, last = (start + offset for offset in entry["data_offsets"])
        tensor = Stored(name, entry["dtype"], tuple(entry["shape"]), first, last - first)
        if 4 * math.prod(tensor.shape) < SMALLEST:
            continue
        values = _floats(data[first:last], tensor.type).reshape(tensor.shape)
        if values.ndim == 2:
            yield _key(values.T), (tensor, True)
        yield _key(values), (tensor, False)


def _floats(data: np.ndarray, kind: str) -> np.ndarray:
    if kind == "BF16":  # the upper half of an fp32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if kind == "F16" else np.float32).astype(np.float32)


def _key(values: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return values.shape, hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).digest()


def _external(tensor: Stored, name: str, file: str) -> TensorProto:
    proto = TensorProto(name=name, data_type=TYPES[tensor.type], dims=tensor.shape)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", tensor.offset), ("length", tensor.length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def _strip(model: ModelProto) -> None:
    """Leave out what only people who debug an exporter read; it is larger than the graph."""
    graph = model.graph
    graph.ClearField("value_info")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
