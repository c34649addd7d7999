"""The pass ``distill``: training towards the source model's outputs, inside a recipe, on the calibration examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options, option
from onnxprune.errors import DataError
from onnxprune.models import require_torch
from onnxprune.models.options import AUGMENTATIONS

if TYPE_CHECKING:
    from onnxprune.data import Examples

LEAST = 8  # examples that can be shared out to learning and picking the epoch
_HELD_OUT = 0.1


@dataclass(frozen=True)
class Distill:
    """Train what the passes before left, towards the outputs of the source model (Hinton, Vinyals, Dean, 2015).

    No labels are needed. Weights that are zero in a pruned tensor stay exactly zero. A tenth of the calibration
    examples picks the epoch that agrees most often; where none agrees more than before, the weights stay. The more
    examples (``--calib-examples``) the better; with a thousand the refits of ``id`` are nearly as good.
    """

    epochs: int = option(5, int, "passes over the calibration examples; 0 changes nothing", low=0, high=10_000)
    lr: float = option(5e-4, float, "learning rate of Adam, which falls to zero along a cosine", low=0.0, above=True)
    batch_size: int = option(64, int, "examples per step", low=1, high=1_000_000)
    temperature: float = option(1.0, float, "class scores are divided by it", low=0.0, above=True)
    augment: str = option(
        "auto", str, "changed copies of images: auto is shift+flip in colour, affine in grey, none elsewhere",
        choices=AUGMENTATIONS,
    )  # fmt: skip
    trainable: str | None = option(None, str, "train only these initialisers: names, globs, re:..., parted by ;")
    device: str = option("auto", str, "auto, cpu, cuda or cuda:N")

    name: ClassVar[str] = "distill"
    summary: ClassVar[str] = "trains towards the source model's outputs; needs PyTorch, no labels"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration", "training"})

    def __post_init__(self) -> None:
        check_options(self)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: training reads the calibration examples itself."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the trained model.

        Raises:
            OptionError: PyTorch is missing, or an option does not fit the model.
            ModelError: The model or its source cannot run in torch.
            DataError: The calibration examples are too few.
            BackendError: Training diverged.
        """
        if self.epochs == 0:
            return StepResult(model.clone(), numbers={"epochs": 0})
        require_torch("the pass distill")
        examples = context.examples
        if examples is None or examples.count < LEAST:
            count = 0 if examples is None else examples.count
            raise DataError(f"distill has {count} calibration examples; at least {LEAST} are needed")
        from onnxprune.models.finetune import finetune, with_defaults
        from onnxprune.models.options import TrainOptions
        from onnxprune.models.teaching import Lesson
        from onnxprune.models.train import Hooks
        from onnxprune.models.tuning_data import divided

        given: dict[str, Any] = {
            name: getattr(self, name) for name in ("epochs", "lr", "batch_size", "augment", "device")
        }
        options = TrainOptions(**with_defaults(given | {"seed": context.seed}))
        data = divided(_parts(examples, context.seed))
        with context.progress("distill", self.epochs) as advance:
            tuned = finetune(
                model, context.original, data, options, Lesson(temperature=self.temperature),
                hooks=Hooks(epoch=lambda _: advance(1)), trainable=self.trainable,
            )  # fmt: skip
        numbers: dict[str, Any] = {
            "epochs": tuned.trained.epochs,
            "best_epoch": tuned.trained.best_epoch if tuned.better else 0,
            "loss_before": tuned.before.loss,
            "loss_after": tuned.after.loss,
            "masked": tuned.masked,
        }
        for name, scores in (("agreement_before", tuned.before), ("agreement_after", tuned.after)):
            if scores.agreement is not None:
                numbers[name] = scores.agreement
        warnings = () if tuned.better else ("distill: no epoch was better than none; the weights are as they were",)
        return StepResult(tuned.model, numbers=numbers, warnings=warnings)


def _parts(examples: Examples, seed: int) -> list[Examples]:
    """Return what is learnt from and what picks the epoch, twice: the evaluation is not this pass's business."""
    order = np.random.default_rng(seed).permutation(examples.count)
    held = max(1, round(_HELD_OUT * examples.count))
    validation = examples.take(np.sort(order[:held]))
    return [examples.take(order[held:]), validation, validation]
