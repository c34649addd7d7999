"""Label rules of LSTM, GRU and RNN: a hidden unit is a channel of every gate, of the recurrence and of the output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.labels import Producer, Rule, Tracer
from onnxprune.graph.rewrites import IntAttribute, Pick

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(tracer: Tracer, node: ir.Node) -> None:
    """X[T, N, I] with W[D, gates*H, I], R[D, gates*H, H], B[D, 2*gates*H]; a hidden unit goes with all its gates.

    With layout = 1 time and batch change places in X, and the batch comes first in outputs and states; features and
    hidden units are last all the same.
    """
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    value, kernel, recurrence, bias, lengths, *states = inputs
    assert value is not None and kernel is not None and recurrence is not None
    if lengths is not None and any(known is not None for known in tracer.axes(lengths)):
        return tracer.refuse(node, "its sequence lengths carry channels")
    stored = [item for item in (kernel, recurrence, bias, states[2]) if item is not None]
    if not all(tracer.sliceable(item) for item in stored):
        return tracer.refuse(node, "its weights are computed, shared with a body, or may be fed by the caller")
    if any(known is not None for item in (value, *states[:2]) for known in tracer.axes(item)[:2]):
        return tracer.refuse(node, "its time or batch axis carries channels")
    gates = _GATES[node.op_type]
    size = (tracer.shape(recurrence) or (0, 0, 0))[2]
    assert size is not None
    tracer.consume(node, value, 2, kernel, 2)
    hidden = tracer.fresh(size)
    tracer.producers.append(Producer(node, kernel, 1))
    tracer.tie(kernel, 1, np.tile(hidden, gates))
    tracer.tie(recurrence, 1, np.tile(hidden, gates))
    tracer.tie(recurrence, 2, hidden)
    if bias is not None:
        tracer.tie(bias, 1, np.tile(hidden, 2 * gates))
    if states[2] is not None:
        tracer.tie(states[2], 1, np.tile(hidden, 3))  # peepholes P[D, 3*H]
    for position in (5, 6):
        _start(tracer, node, position, hidden)
    tracer.mark_opaque(hidden, f"'{node.name}' feeds them back to itself")
    tracer.rewrites.append(IntAttribute(node, "hidden_size", hidden))
    for out in node.outputs:
        rank = len(tracer.shape(out) or ())
        tracer.give(out, [*[None] * (rank - 1), hidden] if rank else [])
    return None


def _start(tracer: Tracer, node: ir.Node, position: int, hidden: np.ndarray) -> None:
    """Label an initial state [D, N, H] or [N, D, H]: of one that cannot be cut, the node reads what stays."""
    state = node.inputs[position] if position < len(node.inputs) else None
    if state is None:
        return
    known = tracer.axes(state)[2]
    if known is not None:
        tracer.unite(known, hidden)
    elif tracer.sliceable(state):
        tracer.tie(state, 2, hidden)
    else:
        tracer.rewrites.append(Pick(tracer.model.graph, node, position, 2, hidden))


RULES: dict[str, Rule] = dict.fromkeys(_GATES, recurrent)
