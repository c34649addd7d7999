"""The split: which examples calibrate, which choose and which judge; never the same ones for two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxprune.data.examples import Examples, Rows
from onnxprune.data.inputs import InputSpec
from onnxprune.data.opening import DataLike, open_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.spec import named_splits, parse_spec
from onnxprune.data.synthetic import Match
from onnxprune.errors import DataError, OptionError

MOST = 1000  # examples to calibrate with, and to choose with, where the user names no number
SHARE = 4  # a pool gives one in four to calibration

_Open = Callable[..., Examples]


@dataclass(frozen=True, eq=False)
class Split:
    """Examples by purpose, disjoint wherever they come from one source.

    Attributes:
        calibration: what statistics are taken on.
        choosing: what calibration left of its source, for searches; None if nothing was left.
        evaluation: what agreement and accuracy are measured on.
        warnings: what the report should say, those of the examples included.
        drawn: how many examples of one source for everything were drawn for calibration, before classes were left
            out; None where calibration has a source, or a split, of its own.
    """

    calibration: Examples | None
    choosing: Examples | None
    evaluation: Examples | None
    warnings: tuple[str, ...] = ()
    drawn: int | None = None


def split_data(
    inputs: Sequence[InputSpec],
    *,
    data: DataLike | None = None,
    calib: DataLike | None = None,
    eval: DataLike | None = None,
    model_data: str | None = None,
    calib_examples: int | None = None,
    eval_examples: int | None = None,
    drop_classes: Sequence[str] = (),
    choosing: bool = False,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    download: bool = False,
    match: Match | None = None,
) -> Split:
    """Open the data and share it out to calibration, choosing and evaluation.

    One source (``data``, ``calib`` alone, or the model's own) is shuffled: min(1000, 25 %) calibrates, the
    rest evaluates. Two sources give at most 1000 for calibration, and all of ``eval``. A data set that comes
    with named splits (``digits``, ``mnist:ROOT``...) and names none calibrates on its training side and
    evaluates on its test side. ``eval`` alone never calibrates: that falls to the training side of the
    model's own data, or to random numbers. Nothing at all means random numbers for both.

    Args:
        inputs: what the model wants.
        data: one source for both purposes; excludes ``calib`` and ``eval``.
        calib: source of calibration (and choosing).
        eval: source of evaluation.
        model_data: the source named in the model's metadata, used where the user gives none.
        calib_examples: how many calibrate.
        eval_examples: at most how many evaluate.
        drop_classes: names or indices of classes of which no example calibrates or chooses; needs labels.
        choosing: one source keeps min(1000, 25 %) back to choose by, out of what would evaluate, unless
            ``eval_examples`` parts it.
        seed: seed of the shuffles and of random numbers.
        preprocess: as in ``open_data``.
        classes: as in ``open_data``.
        download: as in ``open_data``.
        match: as in ``open_data``.

    Raises:
        OptionError: options exclude one another or are out of range.
        DataError: a source is unusable, or a side would get no examples.
    """
    _check(data, calib, eval, calib_examples, eval_examples)
    opener = partial(
        open_data, inputs=inputs, seed=seed, preprocess=preprocess, classes=classes, download=download, match=match
    )
    dropped = Dropped.parse(drop_classes, classes)
    shares = _Shares(opener, calib_examples, eval_examples, seed, dropped, choosing)
    if eval is None:
        given = data if data is not None else calib
        if given is not None:
            return shares.one(given)
        if model_data is None:
            return shares.one("random", ("no data was given and the model names none: random numbers are used",))
        with_metadata = _Shares(partial(_from_metadata, opener), calib_examples, eval_examples, seed, dropped, choosing)
        return with_metadata.one(model_data)
    if calib is not None:
        return shares.two(calib, eval)
    return _evaluation_only(shares, opener, eval, model_data)


@dataclass(frozen=True)
class _Shares:
    """Takes examples from one or two sources by the sizes asked for."""

    opener: _Open
    calib_examples: int | None
    eval_examples: int | None
    seed: int
    dropped: Dropped
    choosing: bool

    def one(self, source: DataLike, warnings: tuple[str, ...] = ()) -> Split:
        """Share one source out; random numbers and named splits are two sources under one name."""
        if _is_random(source) or _sides(source) is not None:
            return self.two(source, source, warnings)
        pool = self.opener(source)
        rows = _shuffled(pool, self.seed)
        wanted = max(1, min(MOST, pool.count // SHARE)) if self.calib_examples is None else self.calib_examples
        if wanted >= pool.count:
            raise DataError(
                f"{pool.source} has {_count(pool)}: {wanted} for calibration leave none for evaluation; "
                "take fewer with --calib-examples, or give --calib and --eval"
            )
        rest = rows[wanted:]
        judged, notes = self._judged(rest, pool.source)
        left = self.dropped.without(pool, rest[len(judged) :])[:MOST]
        return _split(
            pool.take(self.dropped.without(pool, rows[:wanted])),
            pool.take(left) if left.size else None,
            pool.take(judged),
            warnings + notes,
            wanted,
        )

    def two(self, calib: DataLike, judge: DataLike, warnings: tuple[str, ...] = ()) -> Split:
        """Share two sources out, each to its purpose."""
        calibration, choosing, notes = self.calibration(calib)
        evaluation, more = self.evaluation(judge)
        return _split(calibration, choosing, evaluation, warnings + notes + more)

    def calibration(
        self, source: DataLike, opener: _Open | None = None
    ) -> tuple[Examples, Examples | None, tuple[str, ...]]:
        """Draw calibration examples, and choosing ones from what they leave."""
        open_source = opener or self.opener
        if _is_random(source):
            return open_source(source, examples=self.calib_examples), None, ()
        sides = _sides(source)
        opened = open_source(source if sides is None else sides[0])
        rows = self.dropped.without(opened, _shuffled(opened, self.seed))
        wanted = MOST if self.calib_examples is None else self.calib_examples
        notes = _capped("calibration", self.calib_examples, opened.count, opened.source)
        left = rows[wanted:][:MOST]
        return opened.take(rows[:wanted]), opened.take(left) if left.size else None, notes

    def evaluation(self, source: DataLike) -> tuple[Examples, tuple[str, ...]]:
        """Take all evaluation examples, or as many as asked for, shuffled."""
        if _is_random(source):
            # Another seed than calibration's, or both would be the same numbers.
            return self.opener(source, examples=self.eval_examples, seed=self.seed + 1), ()
        sides = _sides(source)
        opened = self.opener(source if sides is None else sides[1])
        if self.eval_examples is None or self.eval_examples >= opened.count:
            return opened, _capped("evaluation", self.eval_examples, opened.count, opened.source)
        return opened.take(_shuffled(opened, self.seed)[: self.eval_examples]), ()

    def _judged(self, rest: Rows, source: str) -> tuple[Rows, tuple[str, ...]]:
        back = min(MOST, len(rest) // SHARE) if self.choosing else 0
        wanted = len(rest) - back if self.eval_examples is None else self.eval_examples
        return rest[:wanted], _capped("evaluation", self.eval_examples, len(rest), f"{source} after calibration")


@dataclass(frozen=True)
class Dropped:
    """Classes of which no example is used for calibration."""

    classes: tuple[int, ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str], names: Sequence[str] | None) -> Dropped:
        """Read names (those of the model's metadata) or indices.

        Raises:
            OptionError: A class is neither.
        """
        found = []
        for text in given:
            if names is not None and text in names:
                found.append(list(names).index(text))
            elif text.isdecimal():
                found.append(int(text))
            else:
                known = "the model names no classes" if names is None else f"the classes are {', '.join(names)}"
                raise OptionError(f"class '{text}' is unknown: {known}; give a name or an index")
        return cls(tuple(found))

    def labels(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return what reports call these classes: their names, or their indices where they have none."""
        known = names or ()
        return tuple(known[index] if index < len(known) else str(index) for index in self.classes)

    def without(self, examples: Examples, rows: Rows) -> Rows:
        """Return the rows whose label is none of these.

        Raises:
            DataError: The examples have no labels, or nothing is left.
        """
        if not self.classes:
            return rows
        if examples.labels is None:
            raise DataError(f"{examples.source} has no labels, so that no class can be left out of calibration")
        left = rows[~np.isin(examples.labels[rows], self.classes)]
        if len(rows) and not len(left):
            raise DataError(f"{examples.source}: without the classes left out there is nothing to calibrate with")
        return left


def _evaluation_only(shares: _Shares, opener: _Open, judge: DataLike, model_data: str | None) -> Split:
    evaluation, notes = shares.evaluation(judge)
    train = None if model_data is None else (named_splits(model_data) or (model_data,))[0]
    if train is None or train == evaluation.source:
        why = "the model names no data" if train is None else f"the model names the same, {train}"
        notes += (f"only evaluation data was given and {why}: calibration uses random numbers",)
        calibration, choosing, more = shares.calibration("random")
    else:
        notes += (f"only evaluation data was given: calibration uses the model's own data, {train}",)
        calibration, choosing, more = shares.calibration(train, partial(_from_metadata, opener))
    return _split(calibration, choosing, evaluation, notes + more)


def _from_metadata(opener: _Open, source: str, **options: int) -> Examples:
    """Open what a model's metadata names; a file from elsewhere must not get a script of its choice run."""
    try:
        _refuse_script(source)
        return opener(source, **options)
    except DataError as error:
        raise DataError(
            f"{error} (the model's metadata names this data; give --data, or --calib and --eval)"
        ) from error


def _refuse_script(source: str) -> None:
    if parse_spec(source).kind == "script":
        raise DataError(f"{source!r} is a script, which is never run from there")


def _check(
    data: DataLike | None,
    calib: DataLike | None,
    judge: DataLike | None,
    calib_examples: int | None,
    eval_examples: int | None,
) -> None:
    if data is not None and (calib is not None or judge is not None):
        raise OptionError("--data excludes --calib and --eval: give one source for both, or one for each")
    for option, number in (("--calib-examples", calib_examples), ("--eval-examples", eval_examples)):
        if number is not None and number <= 0:
            raise OptionError(f"{option} is {number}, it must be at least 1")


def _shuffled(examples: Examples, seed: int) -> Rows:
    return np.random.default_rng(seed).permutation(examples.count).astype(np.int64)


def _is_random(source: DataLike) -> bool:
    return isinstance(source, str) and source == "random"


def _sides(source: DataLike) -> tuple[str, str] | None:
    return named_splits(source) if isinstance(source, str) else None


def _count(examples: Examples) -> str:
    return "1 example" if examples.count == 1 else f"{examples.count} examples"


def _capped(purpose: str, asked: int | None, there: int, source: str) -> tuple[str, ...]:
    if asked is None or asked <= there:
        return ()
    return (f"{purpose}: {asked} examples were asked for, {source} has {there}; all were taken",)


def _split(
    calibration: Examples,
    choosing: Examples | None,
    evaluation: Examples,
    warnings: tuple[str, ...],
    drawn: int | None = None,
) -> Split:
    """Gather the warnings, each once."""
    every = dict.fromkeys((*warnings, *calibration.warnings, *evaluation.warnings))
    return Split(calibration, choosing, evaluation, tuple(every), drawn)
