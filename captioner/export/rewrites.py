"""Changes to a graph that leave what it computes as it is."""

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.onnx_model import OnnxModel


def split_projections(model: OnnxModel) -> None:
    """Project queries, keys and values apart, each [N, T, D], where they were projected together [N, T, 3 D] and then
    sliced. A slice is a copy, and memory is what an encoder in int8 waits for."""
    for squeeze in model.get_nodes_by_op_type("Squeeze"):
        path = model.match_parent_path(squeeze, ["Slice", "Transpose", "Reshape", "Add", "MatMul"], [0] * 5)
        if path is None or list(path[1].attribute[0].ints) != [2, 0, 3, 1, 4]:
            continue
        part, _, reshape, add, product = path
        stored = [model.get_constant_value(name) for name in (*part.input[1:4], reshape.input[1], add.input[1])]
        weight = model.get_constant_value(product.input[1])
        if weight is None or any(value is None for value in stored) or stored[2].tolist() != [0]:
            continue
        start, _, _, (_, tokens, _, heads, width), bias = stored
        own = slice(start[0] * heads * width, (start[0] + 1) * heads * width)
        name = squeeze.output[0]
        constants = {"weight": weight[:, own], "bias": bias[own], "shape": np.array([-1, tokens, heads, width])}
        for kind, value in constants.items():
            model.add_initializer(numpy_helper.from_array(np.ascontiguousarray(value), f"{name}_{kind}"))
        model.remove_node(squeeze)
        model.add_nodes(
            [
                helper.make_node("MatMul", [product.input[0], f"{name}_weight"], [f"{name}_product"]),
                helper.make_node("Add", [f"{name}_product", f"{name}_bias"], [f"{name}_projected"]),
                helper.make_node("Reshape", [f"{name}_projected", f"{name}_shape"], [f"{name}_heads"]),
                helper.make_node("Transpose", [f"{name}_heads"], [name], perm=[0, 2, 1, 3]),
            ]
        )
    model.prune_graph()
    model.topological_sort()


def untie(graph: GraphProto) -> None:
    """Store the embedding a second time as the head reads it: quantised are products with stored weights alone."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in stored]:
        weight = numpy_helper.to_array(stored[node.input[0]])
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight.T), node.output[0]))
        graph.node.remove(node)


def compute_on_request(graph: GraphProto, output: str) -> None:
    """Compute a floating-point output, if there is one of this name, only where a new input, `with_` and its name, is
    true; elsewhere it is empty. ONNX Runtime computes every output, fetched or not."""
    described = next((value for value in graph.output if value.name == output), None)
    if described is None:
        return
    needed = {value.name for value in graph.output if value.name != output}
    for node in reversed(graph.node):  # in topological order
        if needed.intersection(node.output):
            needed.update(node.input)
    own = [node for node in graph.node if not needed.intersection(node.output)]
    others = [node for node in graph.node if needed.intersection(node.output)]
    inner = f"{output}, computed"
    for node in own:
        node.output[:] = [inner if name == output else name for name in node.output]
    type_, rank = described.type.tensor_type.elem_type, len(described.type.tensor_type.shape.dim)
    nothing = helper.make_tensor(f"no {output}", type_, [0] * rank, [])
    empty = helper.make_node("Constant", [], [nothing.name], value=nothing)
    then = helper.make_graph(own, "then", [], [helper.make_tensor_value_info(inner, type_, None)])
    otherwise = helper.make_graph([empty], "else", [], [helper.make_tensor_value_info(nothing.name, type_, None)])
    condition = helper.make_tensor_value_info(f"with_{output}", TensorProto.BOOL, [])
    choice = helper.make_node("If", [condition.name], [output], then_branch=then, else_branch=otherwise)
    described.CopyFrom(helper.make_tensor_value_info(output, type_, [None] * rank))
    graph.input.append(condition)
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*others, choice])
