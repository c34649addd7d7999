"""Running a model piece by piece over the same batches, keeping only what later pieces read.

A method that goes front to back asks for some tensors, changes weights behind them and asks for the next ones: in
pieces, the whole costs one forward run instead of one per layer.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.errors import BackendError
from onnxprune.graph import io
from onnxprune.graph.attributes import inner_nodes
from onnxprune.graph.shapes import refresh_shapes, true_inputs
from onnxprune.runtime.session import Session, Settings

# Bytes of activations kept in memory by one staged model; the rest waits in a temporary folder.
MEMORY_LIMIT = 1 << 30


class Spool:
    """Arrays by (name, batch): in memory up to a limit, beyond it in files of a temporary folder."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._kept: dict[str, dict[int, np.ndarray | Path]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def names(self) -> set[str]:
        """Return the names that are kept."""
        return set(self._kept)

    def put(self, name: str, batch: int, array: np.ndarray) -> None:
        """Keep an array in place of what was kept there.

        Raises:
            BackendError: The temporary folder cannot take it.
        """
        held = self._kept.setdefault(name, {})
        self._release(held.pop(batch, None))
        # Text is kept as Python objects, which a file would not hold.
        if self.used + array.nbytes <= self.limit or array.dtype.hasobject:
            self.used += array.nbytes
            held[batch] = array
            return
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            self._count += 1
            path = Path(self._folder.name) / f"{self._count}.npy"
            np.save(path, array)
        except OSError as error:
            raise BackendError(
                f"activations cannot be kept in a temporary folder: {error.strerror or error}"
            ) from error
        held[batch] = path

    def get(self, name: str, batch: int) -> np.ndarray:
        """Return an array that is kept."""
        held = self._kept[name][batch]
        return np.asarray(np.load(held)) if isinstance(held, Path) else held

    def drop(self, name: str) -> None:
        """Let go of every batch of a name."""
        for held in self._kept.pop(name, {}).values():
            self._release(held)

    def close(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self.used = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _release(self, held: np.ndarray | Path | None) -> None:
        if isinstance(held, Path):
            held.unlink()
        elif held is not None:
            self.used -= held.nbytes


class Staged:
    """A model that runs in pieces over numbered batches; its weights may change between pieces.

    Only nodes of the main graph that have not run yet are run; a piece's outputs are what was asked for and what
    any later piece may read. Use it as a context manager; nodes are neither added nor removed meanwhile.
    """

    def __init__(self, model: ir.Model, settings: Settings, *, memory: int = MEMORY_LIMIT) -> None:
        self.model = model
        self.settings = settings
        self.spool = Spool(memory)
        self.inputs = [str(value.name) for value in true_inputs(model)]
        first = next(iter(true_inputs(model)), None)
        size = first.shape[0] if first is not None and first.shape is not None and len(first.shape) else None
        self._fixed = size if isinstance(size, int) else None
        self._counts: dict[int, int] = {}
        self._done: set[ir.Node] = set()
        self._values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        self._holder = {inner: node for node in model.graph for inner in inner_nodes(node)}
        # Fixed once: rewriting the weights of a node must not change how its results are declared.
        known = model.clone()
        refresh_shapes(known)
        self._declared = {str(v.name): (v.shape, v.type) for node in known.graph for v in node.outputs if v.name}

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.close()

    @contextlib.contextmanager
    def piece(self, wanted: Sequence[str]) -> Iterator[Piece]:
        """Open the piece that computes ``wanted``; run every batch through it, then leave the block.

        Raises:
            BackendError: ONNX Runtime cannot load the piece.
        """
        targets = [self._values[name] for name in dict.fromkeys(wanted)]
        nodes, frontier = self._behind(targets)
        finished = self._finished(nodes)
        later = self._later(finished)
        fresh = [v for node in self.model.graph if node in finished for v in node.outputs if v.name and v in later]
        outputs = list(dict.fromkeys([*(v for v in targets if v.producer() in nodes), *fresh]))
        ready = [str(v.name) for v in targets if v.producer() not in nodes]
        with contextlib.ExitStack() as stack:
            session = stack.enter_context(self._session(frontier, outputs)) if outputs else None
            yield Piece(self, session, [str(v.name) for v in frontier], ready, {str(v.name) for v in fresh})
        self._done |= finished
        for name in self.spool.names():
            if not any(self._holder.get(use.node, use.node) not in self._done for use in self._values[name].uses()):
                self.spool.drop(name)

    def feed(self, name: str, batch: int, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a model input, padded by its last example where the model fixes a larger batch."""
        array = feeds[name]
        if self._fixed is None:
            return array
        if batch not in self._counts:
            self._counts[batch] = len(feeds[self.inputs[0]])
        count = self._counts[batch]
        if not count or count >= self._fixed or not array.ndim or len(array) != count:
            return array
        return np.concatenate([array, np.repeat(array[-1:], self._fixed - count, axis=0)])

    def unpadded(self, array: np.ndarray, batch: int) -> np.ndarray:
        """Return a result without what :meth:`feed` added."""
        count = self._counts.get(batch)
        if count is None or self._fixed is None or not array.ndim or len(array) != self._fixed:
            return array
        return array[:count]

    def _finished(self, nodes: set[ir.Node]) -> set[ir.Node]:
        """Return the nodes that need not run again: what later ones read of them can leave the piece."""
        found: set[ir.Node] = set()
        for node in reversed(self.model.graph):
            nested = [use for value in node.outputs if self._is_nested(value) for use in value.uses()]
            over = found | self._done if nested else found
            if node in nodes and all(self._holder.get(use.node, use.node) in over for use in nested):
                found.add(node)
        return found

    def _is_nested(self, value: ir.Value) -> bool:
        """Return whether a value is no plain tensor: it does not leave a piece, later ones compute it again."""
        kind = self._declared.get(str(value.name), (None, None))[1]
        return isinstance(kind, ir.SequenceType | ir.OptionalType)

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        for inner in (node, *inner_nodes(node)):
            yield from (value for value in inner.inputs if value is not None)

    def _later(self, nodes: set[ir.Node]) -> set[ir.Value]:
        """Return what nodes outside ``nodes`` that have not run yet read."""
        left = (node for node in self.model.graph if node not in self._done and node not in nodes)
        return {value for node in left for value in self._reads(node)}

    def _behind(self, targets: Sequence[ir.Value]) -> tuple[set[ir.Node], list[ir.Value]]:
        """Return the nodes still to run for ``targets``, and the values at which they start."""
        nodes: set[ir.Node] = set()
        frontier: dict[ir.Value, None] = {}
        kept, inputs = self.spool.names(), set(self.inputs)
        stack = list(targets)
        seen: set[ir.Value] = set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            node = value.producer()
            if value.name in kept or (node is None and value.name in inputs):
                frontier[value] = None
                continue
            if node is None or node.graph is not self.model.graph:
                continue
            nodes.add(node)
            stack.extend(self._reads(node))
        return nodes, list(frontier)

    @contextlib.contextmanager
    def _session(self, frontier: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Iterator[Session]:
        graph = ir.convenience.extract(self.model.graph, inputs=frontier, outputs=outputs)
        for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
            shape, kind = self._declared.get(str(value.name), (value.shape, value.type))
            value.shape, value.type = shape, value.type if kind is None else kind
        for value in graph.inputs:
            if value.type is None:  # an operator that inference does not know: the array at hand tells
                value.type = ir.TensorType(ir.DataType.from_numpy(self.spool.get(str(value.name), 0).dtype))
        version = max(self.model.ir_version, 4)
        part = ir.Model(graph, ir_version=version, functions=list(self.model.functions.values()))
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            try:
                file = io.to_scratch(part, Path(folder))
            except OSError as error:
                reason = error.strerror or error
                raise BackendError(f"a temporary copy of a part of the model cannot be written: {reason}") from error
            yield Session(file, self.settings, "a part of the model")


class Piece:
    """One open piece of a staged model."""

    def __init__(
        self, staged: Staged, session: Session | None, frontier: Sequence[str], ready: Sequence[str], kept: set[str]
    ) -> None:
        self._staged, self._session = staged, session
        self._frontier, self._ready, self._kept = frontier, ready, kept

    def run(self, batch: int, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the wanted tensors of one batch; ``feeds`` are the model's inputs, read only where needed.

        Raises:
            BackendError: ONNX Runtime failed, or what later pieces need cannot be kept.
        """
        staged = self._staged

        def known(name: str) -> np.ndarray:
            return staged.feed(name, batch, feeds) if name in staged.inputs else staged.spool.get(name, batch)

        found = {name: known(name) for name in self._ready}
        if self._session is not None:
            fresh = self._session.run({name: known(name) for name in self._frontier})
            for name in self._kept:
                staged.spool.put(name, batch, fresh[name])
            found.update(fresh)
        return {name: staged.unpadded(array, batch) for name, array in found.items()}
