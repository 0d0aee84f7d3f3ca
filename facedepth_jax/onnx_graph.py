"""Write a function of JAX as an ONNX model, from its jaxpr, for the operations that the nets and their codes use.

What does not depend on the input is computed here: batch norm's factors, which become part of the convolution before,
resizing's weights, dropout's fixed draw. JAX's images are (N, H, W, C), those of ONNX's convolutions (N, C, H, W):
values stay so from one convolution to the next, and are turned back where an operation looks at the order.
"""

import dataclasses

import jax
import numpy as np
import onnx
from onnx import helper, numpy_helper

from facedepth_jax.errors import FaceDepthError

OPSET, IR_VERSION = 17, 8  # of 2022, so that older runtimes read the files
TO_ONNX, TO_JAX = (0, 3, 1, 2), (0, 2, 3, 1)
ELEMENTWISE = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "tanh": "Tanh"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "lt": "Less", "select_n": "Where", "convert_element_type": "Cast"},
}


@dataclasses.dataclass(frozen=True)
class _Value:
    """A tensor of the graph, and whether its axes are ONNX's (N, C, H, W)."""

    name: str
    channels_first: bool = False


@dataclasses.dataclass
class _Node:
    op: str
    inputs: list[str]
    output: str
    attributes: dict


def _is_known(value) -> bool:
    return not isinstance(value, _Value)


def _fixed(shape) -> list[int]:
    """Write a batch of any size as -1."""
    return [d if isinstance(d, int) else -1 for d in shape]


class _Graph:
    """The nodes and constants of a graph, in the order of computation."""

    def __init__(self):
        self.nodes: list[_Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def node(self, op, *inputs, channels_first=False, **attributes) -> _Value:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(_Node(op, list(inputs), name, attributes))
        return _Value(name, channels_first)

    def to_layout(self, value, channels_first) -> str:
        """Return the name of a value with its axes in ONNX's order, or in JAX's."""
        if _is_known(value):
            return self.constant(np.transpose(value, TO_ONNX) if channels_first and np.ndim(value) == 4 else value)
        if value.channels_first != channels_first:
            return self.node("Transpose", value.name, perm=TO_ONNX if channels_first else TO_JAX).name
        return value.name

    def run(self, jaxpr, constants, inputs) -> list:
        """Write a jaxpr's equations, applied to values, and return its results."""
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

        def read(x):
            return x.val if hasattr(x, "val") else values[x]

        for eqn in jaxpr.eqns:
            found = self.equation(eqn, [read(x) for x in eqn.invars])
            values |= zip(eqn.outvars, found, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def equation(self, eqn, inputs) -> list:
        name, params = eqn.primitive.name, eqn.params
        if name in ("jit", "custom_jvp_call"):
            inner = params["jaxpr" if name == "jit" else "call_jaxpr"]
            return self.run(inner.jaxpr, inner.consts, inputs)
        if name == "broadcast_in_dim" and -1 in _fixed(params["shape"]):
            # To axes of 1 only: ONNX repeats them where another operand is longer.
            shape = np.ones(len(params["shape"]), int)
            shape[list(params["broadcast_dimensions"])] = _fixed(eqn.invars[0].aval.shape)
            return [self.reshape(inputs[0], shape)]
        if all(map(_is_known, inputs)):
            found = eqn.primitive.bind(*inputs, **params)
            return list(found) if eqn.primitive.multiple_results else [found]
        if name in ELEMENTWISE:
            return [self.elementwise(name, inputs, params)]
        write = getattr(self, f"write_{name}", None)
        if write is None:
            raise FaceDepthError(f"The net uses {name}, which onnx_graph.py cannot write: add it there.")
        return [write(*inputs, eqn=eqn, **params)]

    def elementwise(self, name, inputs, params) -> _Value:
        channels_first = any(x.channels_first for x in inputs if not _is_known(x))
        if name == "select_n":  # false's value comes first
            inputs = [inputs[0], inputs[2], inputs[1]]
        attributes = {"to": helper.np_dtype_to_tensor_dtype(params["new_dtype"])} if "new_dtype" in params else {}
        return self.node(
            ELEMENTWISE[name],
            *(self.to_layout(x, channels_first) for x in inputs),
            channels_first=channels_first,
            **attributes,
        )

    def reshape(self, x, shape):
        if _is_known(x):
            return np.reshape(x, shape)
        return self.node("Reshape", self.to_layout(x, False), self.constant(np.array(shape, np.int64)))

    def write_reshape(self, x, *, new_sizes, **_):
        return self.reshape(x, _fixed(new_sizes))

    def write_transpose(self, x, *, permutation, **_):
        return self.node("Transpose", self.to_layout(x, False), perm=permutation)

    def write_concatenate(self, *inputs, dimension, **_):
        channels_first = inputs[0].channels_first
        axis = TO_ONNX.index(dimension) if channels_first else dimension
        return self.node(
            "Concat", *(self.to_layout(x, channels_first) for x in inputs), channels_first=channels_first, axis=axis
        )

    def write_slice(self, x, *, start_indices, limit_indices, **_):
        """Write a part of the last axis, the only kind."""
        part = (start_indices[-1], limit_indices[-1], -1)
        return self.node("Slice", self.to_layout(x, False), *(self.constant(np.array([i], np.int64)) for i in part))

    def write_gather(self, x, index, *, dimension_numbers, **_):
        """Write x[..., i], the only kind."""
        (axis,) = dimension_numbers.collapsed_slice_dims
        return self.node("Gather", self.to_layout(x, False), self.constant(np.int64(index).reshape(())), axis=axis)

    def write_dot_general(self, a, b, *, dimension_numbers, eqn, **_):
        """Write the product with a known matrix. Not as Einsum, which OpenCV 5.0 cannot run at a second batch size."""
        ((axis_a,), (axis_b,)), batch = dimension_numbers
        x, axis, matrix, rows = (b, axis_b, a, axis_a) if _is_known(a) else (a, axis_a, b, axis_b)
        assert batch == ((), ()) and np.ndim(matrix) == 2
        last = len(eqn.outvars[0].aval.shape) - 1
        x = self.node("Transpose", self.to_layout(x, False), perm=[i for i in range(last + 1) if i != axis] + [axis])
        x = self.node("MatMul", x.name, self.constant(np.moveaxis(matrix, rows, 0)))
        return self.node("Transpose", x.name, perm=[last, *range(last)]) if _is_known(a) else x

    def write_reduce_window_max(self, x, *, window_dimensions, window_strides, padding, **_):
        assert not np.any(padding) and window_dimensions[0] == window_dimensions[3] == 1
        window, strides = window_dimensions[1:3], window_strides[1:3]
        return self.node("MaxPool", self.to_layout(x, True), channels_first=True, kernel_shape=window, strides=strides)

    def write_conv_general_dilated(self, x, w, *, window_strides, padding, lhs_dilation, eqn, **_):
        assert eqn.params["dimension_numbers"].lhs_spec == TO_ONNX and eqn.params["feature_group_count"] == 1
        assert window_strides == (1, 1) or lhs_dilation == (1, 1)
        w = np.transpose(w, (3, 2, 0, 1))  # (O, I, k, k)
        op, strides, (before, behind) = "Conv", window_strides, np.transpose(padding)
        if lhs_dilation != (1, 1):  # a convolution of pixels with zeros between them is a transposed one
            op, strides, w = "ConvTranspose", lhs_dilation, w[:, :, ::-1, ::-1].swapaxes(0, 1)
            before, behind = np.array(w.shape[2:]) - 1 - before, np.array(w.shape[2:]) - 1 - behind
        pads = [int(p) for p in (*before, *behind)]
        attributes = {"kernel_shape": w.shape[2:], "strides": strides, "pads": pads}
        return self.node(op, self.to_layout(x, True), self.constant(w), channels_first=True, **attributes)

    def fold(self):
        """Make sums and products with a constant a part of the convolution before, if nothing else reads that."""
        made = {node.output: node for node in self.nodes}
        readers = [name for node in self.nodes for name in node.inputs]
        for node in list(self.nodes):
            conv, constant = made.get(node.inputs[0]), self.constants.get(node.inputs[-1])
            if constant is None or conv is None or not conv.op.startswith("Conv") or readers.count(conv.output) > 1:
                continue
            if node.op not in ("Add", "Sub", "Mul") or constant.size not in (1, max(constant.shape[1:2], default=1)):
                continue
            axis = 0 if conv.op == "Conv" else 1
            w = self.constants[conv.inputs[1]]
            bias = self.constants[conv.inputs[2]] if len(conv.inputs) > 2 else np.zeros(w.shape[axis], w.dtype)
            constant = np.broadcast_to(constant.reshape(-1), bias.shape)
            if node.op == "Mul":
                w, bias = w * constant.reshape((-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1)), bias * constant
            else:
                bias = bias + constant if node.op == "Add" else bias - constant
            conv.inputs[1:] = [self.constant(w), self.constant(bias)]
            del made[conv.output]
            conv.output = node.output
            made[node.output] = conv
            self.nodes.remove(node)


def to_onnx(function, size: int, inputs: str, outputs: list[str], about: dict[str, str]) -> bytes:
    """Write a function of images as an ONNX model.

    Args:
      function: uint8 (N, size, size) -> a list of arrays, for any N.
      inputs, outputs: names.
      about: metadata.

    Raises:
      FaceDepthError: it uses an operation that is not known here.
    """
    (batch,) = jax.export.symbolic_shape("N")
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((batch, size, size), np.uint8))
    graph = _Graph()
    found = graph.run(closed.jaxpr, closed.consts, [_Value(inputs)])
    for name, value in zip(outputs, found, strict=True):
        graph.nodes.append(_Node("Identity", [graph.to_layout(value, False)], name, {}))
    graph.fold()
    used = {name for node in graph.nodes for name in node.inputs}

    def info(name, aval):
        shape = [d if isinstance(d, int) else str(d) for d in aval.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(aval.dtype), shape)

    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(n.op, n.inputs, [n.output], n.output, **n.attributes) for n in graph.nodes],
            "facedepth_jax",
            [info(inputs, closed.in_avals[0])],
            [info(name, aval) for name, aval in zip(outputs, closed.out_avals, strict=True)],
            [numpy_helper.from_array(a, name) for name, a in graph.constants.items() if name in used],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="facedepth_jax",
    )
    helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
