"""The pass ``int8``: weights and activations in eight bits, by ONNX Runtime's own quantiser."""

from __future__ import annotations

import contextlib
import io as text_io
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options, option
from onnxprune.data import Examples
from onnxprune.errors import BackendError, ModelError, OnnxPruneError, OptionError
from onnxprune.graph import constants, io, origins
from onnxprune.graph.cleanup import finish
from onnxprune.graph.fold_bn import fold_batch_norms
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import true_inputs
from onnxprune.runtime.operators import require_runnable

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Before these opsets DynamicQuantizeLinear, and a scale per channel in DequantizeLinear, do not exist.
_OLDEST, _PER_CHANNEL = 11, 13


@dataclass(frozen=True)
class Int8:
    """Quantise with onnxruntime.quantization: QuantizeLinear and DequantizeLinear pairs around what is to be integer.

    Ranges of activations come from the calibration examples (static), or are taken at run time (dynamic).
    BatchNormalization is folded first, as the quantiser wants it.
    """

    mode: str = option(
        "static", str, "ranges of activations from calibration, or at run time", choices=("static", "dynamic")
    )
    method: str = option(
        "minmax",
        str,
        "static: ranges by the extremes, by entropy (KL divergence), or by a percentile",
        choices=("minmax", "entropy", "percentile"),
    )
    per_channel: bool = option(True, bool, "a scale per output channel of a weight, or one for all")
    activations: str = option("uint8", str, "type of activations (static)", choices=("uint8", "int8"))
    weights: str = option("int8", str, "type of weights", choices=("int8", "uint8"))
    # Sums of two products of eight bits leave the sixteen that AVX2 and AVX-512 without VNNI keep them in.
    reduce_range: bool = option(
        True, bool, "seven bits for weights, right on every processor; false for those with VNNI, for GPUs, NPUs"
    )
    only: str | None = option(None, str, "quantise only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never quantise these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "quantises weights and activations to eight bits (ONNX Runtime's quantiser)"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        check_options(self)
        _ = self._selection
        if self.mode == "static" and self.activations == "int8" and self.weights == "uint8":
            raise OptionError("int8: ONNX Runtime multiplies no int8 activations by uint8 weights; give weights=int8")

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the quantiser runs the calibration examples itself."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the quantised model; linear nodes that stay in floating point are listed with the reason.

        Raises:
            ModelError: The model is quantised already, is not in single precision, or its opset is too old.
            BackendError: ONNX Runtime's quantiser failed.
        """
        self._check(model)
        work, _, _ = fold_batch_norms(model)
        warnings: list[str] = []
        mode = self.mode
        if mode == "static" and context.examples is None:
            mode = "dynamic"
            warnings.append("int8: without calibration examples activations are quantised at run time (mode=dynamic)")
        if mode == "static":
            require_runnable(self.name, work)
        reasons = {str(node.name): self._selection.reason([str(node.name)]) for node in work.graph}
        barred = {name: reason for name, reason in reasons.items() if reason is not None}
        while True:
            with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
                result = self._quantised(work, Path(folder), mode, sorted(barred), context)
            infinite = _infinite(result) - barred.keys()
            if not infinite:
                break
            barred |= dict.fromkeys(infinite, "a tensor that it reads or makes holds infinity, which has no range")
        _restore(result, work)
        linear = {str(node.name) for node in work.graph if node.op_type in _LINEAR}
        left = [str(node.name) for node in result.graph if node.op_type in _LINEAR and not _integer(node)]
        skipped = {name: barred.get(name, f"the quantiser left it in floating point ({mode})") for name in left}
        numbers = {"mode": mode, "quantised": len(linear) - len(left), "nodes": len(linear)}
        if not linear - set(left):
            warnings.append("int8 quantised nothing; the reasons are listed with the step")
        return StepResult(finish(result), skipped, numbers, warnings=tuple(warnings))

    def _check(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type in origins.QUANTISERS:
                raise ModelError(
                    f"int8: the model is quantised already ('{node.name}' is {node.op_type}); "
                    "go back to floating point first, as in dequantize,...,int8"
                )
            if node.op_type == "DynamicQuantizeLinear" or "QLinear" in node.op_type or node.op_type.endswith("Integer"):
                raise ModelError(f"int8: '{node.name}' ({node.op_type}) computes with integers; give the float model")
            weight = node.inputs[1] if node.op_type in _LINEAR and len(node.inputs) > 1 else None
            tensor = constants.stored(weight)
            if tensor is not None and tensor.dtype != ir.DataType.FLOAT and tensor.dtype.is_floating_point():
                raise ModelError(f"int8: '{node.name}' has weights in {tensor.dtype}; the quantiser wants FLOAT")
        version = model.opset_imports.get("", 1)
        if version < _OLDEST:
            raise ModelError(f"int8: the model has opset {version}; quantised models need {_OLDEST}: export it anew")
        if self.per_channel and version < _PER_CHANNEL:
            raise ModelError(
                f"int8: the model has opset {version}, and a scale per channel needs {_PER_CHANNEL}: "
                "export it anew, or give per_channel=false"
            )

    def _quantised(self, work: ir.Model, folder: Path, mode: str, barred: list[str], context: Context) -> ir.Model:
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static

        file, out = _written(work, folder), folder / "int8.onnx"
        types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        common: dict[str, Any] = {
            "per_channel": self.per_channel,
            "reduce_range": self.reduce_range,
            "weight_type": types[self.weights],
            "nodes_to_exclude": barred,
            "use_external_data_format": file.with_name(f"{file.name}.data").exists(),
        }
        try:
            with _quiet(folder):
                if mode == "dynamic":
                    # ONNX Runtime has no ConvInteger for int8 weights.
                    kinds = ["MatMul", "Gemm", *(["Conv"] if self.weights == "uint8" else [])]
                    quantize_dynamic(file, out, op_types_to_quantize=kinds, **common)
                else:
                    assert context.examples is not None
                    quantize_static(
                        file, out, _reader(context.examples, work, context.settings.batch_size),
                        activation_type=types[self.activations],
                        calibrate_method={
                            "minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
                            "percentile": CalibrationMethod.Percentile,
                        }[self.method],
                        # Runtimes fuse a Relu into the rounding behind it; without it nobody can go back.
                        extra_options={"QDQKeepRemovableActivations": True}, **common,
                    )  # fmt: skip
            return ir.external_data.load_to_model(ir.load(out))
        except OSError as error:
            raise BackendError(f"int8: a temporary file cannot be written: {error.strerror or error}") from error
        except OnnxPruneError:
            raise
        except Exception as error:  # whatever the quantiser raises is told as its failure
            reason = " ".join(str(error).split())[:300]
            raise BackendError(f"int8: ONNX Runtime's quantiser failed: {type(error).__name__}: {reason}") from error


def _written(work: ir.Model, folder: Path) -> Path:
    """Write the model without what it declares of stored tensors: the quantiser transposes some of them."""
    file = io.to_folder(work, folder, "float.onnx")
    proto = onnx.load(file, load_external_data=False)
    declared = [info for info in proto.graph.value_info if info.name not in work.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    file.write_bytes(proto.SerializeToString())
    return file


def _reader(examples: Examples, model: ir.Model, size: int) -> Any:
    """Return the calibration examples as the quantiser reads them, in whole batches."""
    from onnxruntime.quantization import CalibrationDataReader

    inputs = true_inputs(model)
    names = [str(value.name) for value in inputs]
    fixed = next((v.shape[0] for v in inputs if v.shape is not None and len(v.shape)), None)
    wide = fixed if isinstance(fixed, int) else min(size, examples.count)
    # A batch that is not full is filled with the first examples again: that changes no extremes.
    places = np.arange(-(-examples.count // wide) * wide) % examples.count
    taken = examples.take(places)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Yields one batch after the other."""

        def __init__(self) -> None:
            self._batches = iter(taken.batches(wide))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch.arrays[name] for name in names}

    return Reader()


@contextlib.contextmanager
def _quiet(folder: Path) -> Iterator[None]:
    """Keep the quantiser's remarks away, and its temporary files in a folder that goes."""
    before, place = logging.root.manager.disable, tempfile.tempdir
    logging.disable(logging.CRITICAL)
    tempfile.tempdir = str(folder)
    try:
        with contextlib.redirect_stdout(text_io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        logging.disable(before)
        tempfile.tempdir = place


def _integer(node: ir.Node) -> bool:
    """Return whether a linear node's weight is dequantised in front of it."""
    source = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return source is not None and source.op_type == "DequantizeLinear"


def _infinite(result: ir.Model) -> set[str]:
    """Return the nodes next to a rounding without a finite scale, as masks of minus infinity give it."""
    found: set[str] = set()
    for node in result.graph:
        if node.op_type not in origins.QUANTISERS:
            continue
        scale = constants.array(node.inputs[1]) if node.inputs[1] is not None else None
        if scale is None or bool(np.isfinite(scale).all()):
            continue
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        around = [maker, *(use.node for use in node.outputs[0].uses())]
        found |= {str(other.name) for other in around if other is not None and other.op_type not in origins.QUANTISERS}
    return found


def _restore(result: ir.Model, source: ir.Model) -> None:
    """Give a quantised model what the quantiser dropped or changed of its source, in place."""
    for ours, theirs in zip(result.graph.outputs, source.graph.outputs, strict=True):
        ours.shape, ours.type = theirs.shape, theirs.type
    result.metadata_props.clear()
    result.metadata_props.update(source.metadata_props)
    result.meta.update(source.meta)
    result.ir_version = max(result.ir_version, source.ir_version) if result.functions else source.ir_version
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    result.doc_string, result.graph.doc_string = source.doc_string, source.graph.doc_string
    result.graph.name = source.graph.name
