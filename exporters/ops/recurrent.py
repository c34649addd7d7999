"""LSTM, GRU and RNN: torch's own kernels where they compute the same, else step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, alike

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# torch orders the gates of an LSTM input, forget, cell, output, and of a GRU reset, update, hidden.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
}
_Step = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, ...]]


def recurrent(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Run a recurrent layer over sequences ``[steps, batch, inputs]`` (``layout=1``: batch first)."""
    x, w, r, bias, hidden, cell, peepholes = alike(x, w, r, bias, hidden, cell, peepholes)
    first = bool(call.integer("layout", 0))
    if first:
        x = x.transpose(0, 1)
        hidden = None if hidden is None else hidden.transpose(0, 1)
        cell = None if cell is None else cell.transpose(0, 1)
    size, ways = r.shape[-1], len(w)
    zeros = torch.zeros(ways, x.shape[1], size, dtype=x.dtype, device=x.device)
    states = [zeros if hidden is None else hidden]
    if call.op == "LSTM":
        states.append(zeros if cell is None else cell)
    if lengths is None and peepholes is None and _is_plain(call, x):
        found = _fused(call, x, w, r, bias, states)
    else:
        found = _stepwise(call, x, w, r, bias, lengths, states, peepholes)
    if first:
        return (found[0].permute(2, 0, 1, 3), *[state.transpose(0, 1) for state in found[1:]])
    return found


def _is_plain(call: Call, x: Tensor) -> bool:
    """Return whether torch's kernels compute this node."""
    usual = [name.lower() for name in _DEFAULTS[call.op]]
    given = [str(name).lower() for name in call.attributes.get("activations", usual)]
    same = given == usual * (len(given) // len(usual))
    odd = "clip" in call.attributes or call.integer("input_forget", 0)
    reset_after = call.op != "GRU" or call.integer("linear_before_reset", 0)
    way = call.text("direction", "forward")
    return bool(same and not odd and reset_after and way in ("forward", "bidirectional")) and not (
        torch.is_autocast_enabled(x.device.type)
    )


def _reordered(call: Call, matrix: Tensor) -> Tensor:
    parts = matrix.chunk(_GATES[call.op], 0)
    return torch.cat([parts[i] for i in _ORDER[call.op]], 0)


def _fused(
    call: Call, x: Tensor, w: Tensor, r: Tensor, bias: Tensor | None, states: list[Tensor]
) -> tuple[Tensor, ...]:
    flat = []
    for way in range(len(w)):
        flat += [_reordered(call, w[way]), _reordered(call, r[way])]
        if bias is not None:
            flat += [_reordered(call, part) for part in bias[way].chunk(2, 0)]
    both = len(w) > 1
    rest = (flat, bias is not None, 1, 0.0, False, both, False)
    if call.op == "LSTM":
        out, last, cell = torch.lstm(x, [state.contiguous() for state in states], *rest)
        return _by_way(out, len(w)), last, cell
    run = torch.gru if call.op == "GRU" else torch.rnn_tanh
    out, last = run(x, states[0].contiguous(), *rest)
    return _by_way(out, len(w)), last


def _by_way(out: Tensor, ways: int) -> Tensor:
    return out.reshape(*out.shape[:2], ways, -1).transpose(1, 2)


def _stepwise(
    call: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    states: list[Tensor],
    peepholes: Tensor | None,
) -> tuple[Tensor, ...]:
    outs, lasts = [], []
    for way in range(len(w)):
        backward = call.text("direction", "forward") == "reverse" or way == 1
        step = _step(
            call, way, r[way], None if bias is None else bias[way], None if peepholes is None else peepholes[way]
        )
        # What depends on the inputs alone is one product over all steps.
        given = functional.linear(x, w[way])
        out, last = _walk(given, [state[way] for state in states], step, lengths, backward)
        outs.append(out)
        lasts.append(last)
    return (torch.stack(outs, 1), *[torch.stack(list(parts), 0) for parts in zip(*lasts, strict=True)])


def _walk(
    given: Tensor, states: list[Tensor], step: _Step, lengths: Tensor | None, backward: bool
) -> tuple[Tensor, list[Tensor]]:
    count = len(given)
    found: list[Tensor] = [given.new_zeros(0)] * count
    for t in reversed(range(count)) if backward else range(count):
        new = list(step(given[t], states))
        out = new[0]
        if lengths is not None:
            alive = (t < lengths.to(given.device)).unsqueeze(1)
            new = [torch.where(alive, n, s) for n, s in zip(new, states, strict=True)]
            out = torch.where(alive, out, torch.zeros_like(out))
        found[t], states = out, new
    return torch.stack(found), states


def _activation(call: Call, way: int, place: int) -> Callable[[Tensor], Tensor]:
    count = len(_DEFAULTS[call.op])
    names = list(call.attributes.get("activations", _DEFAULTS[call.op] * (way + 1)))
    name = str(names[way * count + place]).lower()
    if name not in _ACTIVATIONS or call.attributes.get("activation_alpha"):
        call.refuse(f"activation '{names[way * count + place]}' with its numbers is not supported")
    limit, function = call.attributes.get("clip"), _ACTIVATIONS[name]
    if limit is None:
        return function
    return lambda value: function(torch.clamp(value, -float(limit), float(limit)))


def _step(call: Call, way: int, r: Tensor, bias: Tensor | None, peepholes: Tensor | None) -> _Step:
    gates = _GATES[call.op]
    wb, rb = (None, None) if bias is None else bias.chunk(2, 0)
    acts = [_activation(call, way, place) for place in range(len(_DEFAULTS[call.op]))]

    def add(value: Tensor, part: Tensor | None) -> Tensor:
        return value if part is None else value + part

    def rnn(given: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (acts[0](add(given, wb) + functional.linear(states[0], r, rb)),)

    def gru(given: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h = states[0]
        inside = add(given, wb).chunk(gates, 1)
        rz, rr, rh = r.chunk(gates, 0)
        bz, br, bh = (None,) * 3 if rb is None else rb.chunk(gates, 0)
        update = acts[0](inside[0] + functional.linear(h, rz, bz))
        reset = acts[0](inside[1] + functional.linear(h, rr, br))
        if call.integer("linear_before_reset", 0):
            new = acts[1](inside[2] + reset * functional.linear(h, rh, bh))
        else:
            new = acts[1](inside[2] + functional.linear(reset * h, rh, bh))
        return ((1 - update) * new + update * h,)

    def lstm(given: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h, c = states
        i, o, f, new = (add(given, wb) + functional.linear(h, r, rb)).chunk(gates, 1)
        pi, po, pf = (None,) * 3 if peepholes is None else peepholes.chunk(3, 0)
        enter = acts[0](i if pi is None else i + pi * c)
        keep = 1 - enter if call.integer("input_forget", 0) else acts[0](f if pf is None else f + pf * c)
        c = keep * c + enter * acts[1](new)
        leave = acts[0](o if po is None else o + po * c)
        return leave * acts[2](c), c

    return {"LSTM": lstm, "GRU": gru, "RNN": rnn}[call.op]


OPERATORS: dict[str, Operator] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
