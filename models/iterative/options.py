"""How a network is pruned in rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from onnxprune.errors import OptionError
from onnxprune.models.iterative.choosing import SCOPES, Rule, fraction
from onnxprune.models.iterative.pqindex import Sap

__all__ = ["METHODS", "SCHEDULE", "IterateOptions", "method_named"]

METHODS = ("lth", "sap", "incop-if", "incop-gf", "surp", "magnitude")
_ALIASES = {"ciap": "incop-if", "giap": "incop-gf", "imp": "lth", "lt": "lth"}
STAGED = ("surp", "magnitude")
_VALUES = ("reconstruction", "original", "refit")
SCHEDULE = (
    *(1 - 0.8**stage for stage in range(1, 11)),
    0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.992, 0.994, 0.996, 0.997, 0.998, 0.999,
)  # fmt: skip
"""Sparsities of SuRP's stages, as its authors' configurations have them (Isik, Weissman, No 2022)."""


@dataclass(frozen=True)
class IterateOptions:
    """What happens in a round; how a round trains is in ``TrainOptions``, whose epochs are a round's at most.

    Attributes:
        method: One of ``METHODS``. ``lth`` prunes a share of what is left and goes back to early weights (Frankle,
            Carbin 2019); ``sap`` the share that the PQ index allows (Diao et al. 2023); ``incop-if`` and ``incop-gf``
            do so too, and end a round's training as soon as information or gradients flow as in the dense network,
            or it is as right as that (InCoP 2025); ``surp`` and ``magnitude`` follow a schedule and go on from the
            weights that they have.
        rounds: Of pruning, after the dense one.
        prune: ``lth``: share of the weights left that goes in a round.
        sap: The others' norms and bounds.
        scope: Where weights are compared: ``global``, ``layer`` or ``neuron``.
        warmup: Epochs that the dense network trains first; None is a round's, for a graph that is trained already 0.
        rewind: The epoch of the warm-up whose weights every round starts from; None is its last.
        chunk: Epochs between two looks at the flow.
        epsilon: Distance of flows at which a round ends; None is how far the dense network's own flow moves in one
            chunk of its training (the median).
        settled: A round ends as well when its flow has settled away from the dense network's: when it moved less than
            ``epsilon`` between two looks. Not in the paper.
        relative: The distance is over the length of the dense network's flow.
        signed: Correlations keep their signs, as in the authors' code.
        probe: Training examples that flows are measured on, and that ``values="refit"`` solves for.
        sparsities: ``surp`` and ``magnitude``: what is zero after each stage.
        values: The weights that a stage's training starts from: ``original``; ``reconstruction``, what the code
            decodes to (``surp`` alone); or ``refit``, solved for anew so that every layer gives what it gave. None is
            ``reconstruction`` with ``surp``, ``original`` with ``magnitude``, as published.

    Raises:
        OptionError: If a value is out of range.
    """

    method: str = "lth"
    rounds: int = 15
    prune: float = 0.2
    sap: Sap = field(default_factory=Sap)
    scope: str = "global"
    warmup: int | None = None
    rewind: int | None = None
    chunk: int = 2
    epsilon: float | None = None
    settled: bool = False
    relative: bool = False
    signed: bool = False
    probe: int = 1000
    sparsities: tuple[float, ...] = SCHEDULE
    values: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"method '{self.method}': accepted are {', '.join(METHODS)}")
        for name, least in (("rounds", 1), ("chunk", 1), ("probe", 2)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} {getattr(self, name)}: at least {least} is accepted")
        fraction(self.prune)
        if self.scope not in SCOPES:
            raise OptionError(f"scope '{self.scope}': accepted are {', '.join(SCOPES)}")
        if self.warmup is not None and self.warmup < 0:
            raise OptionError(f"warmup {self.warmup}: 0 or more epochs are accepted")
        if self.rewind is not None and not 0 <= self.rewind <= (math.inf if self.warmup is None else self.warmup):
            raise OptionError(f"rewind {self.rewind}: an epoch of the warm-up is accepted, 0 to {self.warmup}")
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise OptionError(f"epsilon {self.epsilon}: a positive number is accepted, or auto")
        known = _VALUES if self.method == "surp" else _VALUES[1:]
        if self.values is not None and (self.values not in known or not self.staged):
            said = f"{self.method} accepts {', '.join(known)}" if self.staged else "it is for surp and magnitude"
            raise OptionError(f"values '{self.values}': {said}")
        rising = all(0 < a < b < 1 for a, b in zip(self.sparsities, self.sparsities[1:], strict=False))
        if not self.sparsities or not rising or not 0 < self.sparsities[0] < 1:
            raise OptionError(f"sparsities {self.sparsities}: rising shares of zeros between 0 and 1 are accepted")

    @property
    def staged(self) -> bool:
        """Return whether a schedule of sparsities is followed, without going back."""
        return self.method in STAGED

    @property
    def starting_values(self) -> str:
        """Return ``values``, decided."""
        return self.values or ("reconstruction" if self.method == "surp" else "original")

    @property
    def flowing(self) -> bool:
        """Return whether a round ends by the flow."""
        return self.method.startswith("incop")

    @property
    def rule(self) -> Rule:
        """Return how many of the weights that are left go."""
        return fraction(self.prune) if self.method == "lth" else self.sap.count


def method_named(text: str) -> str:
    """Read a method's name or the name that the authors' scripts give it.

    Raises:
        OptionError: If there is no such method.
    """
    name = text.lower().replace("_", "-")
    name = _ALIASES.get(name, name)
    if name not in METHODS:
        raise OptionError(f"method '{text}': accepted are {', '.join((*METHODS, *_ALIASES))}")
    return name
