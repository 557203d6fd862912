"""Audit heatmaps: which attribution method can be trusted, for this network?

Every method passes the same checks, beside maps that need no network and beside the same network with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from captum.attr import Occlusion
from torch import Tensor, nn

from cnnlab import plots
from cnnlab.interpret.attribution import DISTRUST, MAX_GAP, Attribution, Method, attribute_head
from cnnlab.interpret.controls import RANDOM, TRIVIAL_MAPS, insertion_deletion, randomise
from cnnlab.interpret.method_names import method_title
from cnnlab.interpret.metrics import bootstrap_ci, evidence_rank_correlation, mass_accuracy, rank_accuracy
from cnnlab.interpret.network import HeadWrapper, batch_size, frozen_copy, head_keys
from cnnlab.interpret.planted import (
    LEARNED,
    Planted,
    brightest_fixed_place,
    contrast,
    grows_at_marker,
    lowest_half,
    marker_and_lookalike,
    plant,
    without_marker,
)
from cnnlab.plots.result import Result
from cnnlab.utils.console import as_table
from cnnlab.utils.errors import UserError, one_line

USE, CARE, AVOID = "use", "with care", "do not use"
PLANTED, CLASS = "planted marker", "planted marker: class"
PLACE, GAIN = "planted marker: place", "planted marker: gain"
FIXED = "planted marker: fixed place"
CURVES, CURVES_GAIN, LIKENESS = "insertion - deletion", "insertion - deletion: gain", "likeness to random weights"
PIXELS, PIXELS_GAIN, PAIRS, GRID = "right pixels", "right pixels: gain", "pairs", "grid pointing game"
SUM, SIGN, ALONE, TWICE, HEADS = "completeness", "sign", "alone or in a batch", "the same twice", "heads"
INSIDE, OUTSIDE = "likeness on right pixels", "likeness on other pixels"
EXCHANGE = "exchange gain"  # the reference of pairs
CONTRAST = 0.6, 0.4  # passes with four times the evidence on the marker, fails below 2.3 times
PLACEMENT = 0.8, 0.25  # of the images; attention carries what a marker adds to other places
SAME_PLACE = 0.4, 0.75  # of the evidence on the marker
SIGNS = 0.75, 0.5  # of the images
MAX_DIFFERENCE = 0.01, 0.05  # relative differences
TRIALS = 8  # mosaics, and images for the sign
FEWEST = 8  # images
UNTRAINED = 5  # copies with random weights
FEW, SOME = 4, 16  # images for the axioms, and for controls

# What is wrong with a method that fails a check. The first group leads to "do not use", the second to "with care".
DECISIVE = {
    PLANTED: "it does not tell a planted marker from its lookalike",
    CLASS: "it shows the planted marker for another class as well",
    PLACE: "what a planted marker adds to the map lies in other places, too",
    FIXED: "one place is bright in most maps, wherever the marker lies",
    GAIN: "with random weights it finds the planted marker as well",
    TWICE: "it gives another map each time",
    ALONE: "the map of an image depends on the other images",
}
ADVISORY = {
    CURVES: "the pixels it marks are not shown to matter more than random ones",
    SUM: "its sum often misses the score difference",
    SIGN: "removing its evidence for a class often does not lower the score",
    LIKENESS: "with random weights its maps look much the same",
    PIXELS: "it is not shown to find the right pixels better than a random map",
    PAIRS: "it is not shown to find the pixels that differ better than a random map",
    GRID: "in a mosaic it does not find the image with the class",
    CURVES_GAIN: "the pixels it marks with random weights matter as much",
}
WITHOUT_MARKER = (CURVES, CURVES_GAIN)  # decide where no marker could be planted
CHECKS = (*DECISIVE, *ADVISORY, PIXELS_GAIN, INSIDE, OUTSIDE, HEADS)  # the last four are for information


Verdict = tuple[str, str]  # and the reason


@dataclass(frozen=True)
class Check:
    """One number of a method and a head with its 95 % interval; `passed` is None where it decides nothing: for
    controls, or between passed and failed."""

    method: str
    head: str
    check: str
    value: float
    low: float
    high: float
    passed: bool | None = None


@dataclass(frozen=True)
class Example:
    """An image (C, H, W), its heatmap (H, W) and that of random weights; image and heatmap with a planted marker, if
    there is one."""

    image: Tensor
    heatmap: Tensor
    untrained: Tensor
    marked: Tensor | None = None
    marked_heatmap: Tensor | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult(Result):
    """The verdict on each method, and the checks behind it.

    `verdicts` is {method: (verdict, reason)}, `by_head` {(method, head): (verdict, reason)}; `planted` {head: how well
    its copy learned the marker}; `notes` say what could not be checked; `images` is their number.
    """

    checks: Sequence[Check]
    verdicts: dict[str, Verdict]
    by_head: dict[tuple[str, str], Verdict]
    notes: tuple[str, ...] = ()
    planted: dict[str, str] = field(default_factory=dict)
    images: int = 0
    examples: dict[tuple[str, str], Example] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        return {"verdicts": self.verdicts, "notes": self.notes, "planted": self.planted, "images": self.images}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `to_pandas`: method, head, check, value, low, high, passed, verdict. Controls, as edges,
        have no verdict."""
        return [{**asdict(check), "verdict": self.verdicts.get(check.method, ("",))[0]} for check in self.checks]

    def table(self, head: str) -> dict[str, dict[str, Check]]:
        """Return {method or control: {check: its number}} for a head."""
        names = dict.fromkeys([*self.verdicts, *(row.method for row in self.checks)])
        checks = [row for row in self.checks if row.head == head]
        return {name: {row.check: row for row in checks if row.method == name} for name in names}

    @property
    def heads(self) -> list[str]:
        return list(dict.fromkeys(head for _, head in self.by_head))

    def plot(self) -> plots.Figure:
        """Draw the table of methods and checks in three colours, a panel per head."""
        panels = {}
        for head in self.heads:
            panels[head] = {
                method_title(name): {check: (row.value, row.passed) for check, row in rows.items()}
                for name, rows in self.table(head).items()
            }
        checks = [check for check in CHECKS if any(row.check == check for row in self.checks)]
        return plots.checks(panels, checks, list(map(method_title, self.verdicts)))

    def __repr__(self) -> str:
        rows = [["method", "verdict", "why"]]
        rows += [[method_title(name), *verdict] for name, verdict in self.verdicts.items()]
        planted = [f"planted marker{head and f', {head}'}: {text}" for head, text in self.planted.items()]
        return "\n".join([as_table(rows, left=3), *planted, *(f"! {note}" for note in self.notes)])


def audit(
    net: nn.Module,
    images: Tensor,
    methods: Mapping[str, Method],
    heads: Sequence[str | int | None] | None = None,
    masks: Tensor | Mapping[Any, Tensor] | None = None,
    counterfactuals: Tensor | Mapping[Any, Tensor] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> AuditResult:
    """Return a verdict on each method for the predicted classes of a network.

    Args:
        net: Any network that `attribute` takes. It is not changed.
        images: Float (N, C, H, W), at least eight; 100 small or 32 large ones give clear verdicts.
        methods: {name: method}.
        heads: Keys or indices of heads; None for all.
        masks: The right pixels, if you know them, bool (N, H, W), or {head: masks}.
        counterfactuals: Images (N, C, H, W) of another class that differ only where they must, or {head: images}.
        progress: Called with one line about the present work.

    A `KeyboardInterrupt` ends the audit early: the methods that are ready are returned, with a note. Raises `UserError`
    for too few images, and for masks or counterfactuals of another shape.
    """
    if images.ndim != 4 or len(images) < FEWEST:
        raise UserError(f"an audit needs at least {FEWEST} images (N, C, H, W), not {tuple(images.shape)}: give more")
    if not torch.isfinite(images).all():
        raise UserError("images hold values that are not finite")
    if not methods:
        raise UserError("name at least one method")
    images = images.detach().clone()
    net, checks, notes = frozen_copy(net), list[Check](), list[str]()
    verdicts, by_head = dict[str, Verdict](), dict[tuple[str, str], Verdict]()
    examples: dict[tuple[str, str], Example] = {}
    with torch.inference_mode(False):
        keys = head_keys(net, images) if heads is None else list(heads)
        unknown = {key for given in (masks, counterfactuals) if isinstance(given, Mapping) for key in given} - {*keys}
        if not keys:
            raise UserError("name at least one head")
        if unknown:
            raise UserError(f"masks or counterfactuals of {sorted(map(str, unknown))}: the heads are {keys}")
        try:
            untrained = [randomise(net, seed=seed) for seed in range(UNTRAINED)]
            subjects = []
            for key in keys:
                known_masks = _of_head(masks, key, "masks", [len(images), *images.shape[2:]])
                others = _of_head(counterfactuals, key, "counterfactuals", images.shape)
                subjects.append(_Subject(net, key, images, untrained, known_masks, others, progress))
                checks += subjects[-1].controls
                notes += subjects[-1].notes
            for name, method in methods.items():
                graded = [_Grader(subject, name, method, progress) for subject in subjects]
                _compare_heads(graded)
                verdicts[name] = _overall({grader.head: grader.verdict for grader in graded})
                for grader in graded:
                    checks += grader.checks
                    by_head[name, grader.head] = grader.verdict
                    if grader.example:
                        examples[name, grader.head] = grader.example
        except KeyboardInterrupt:
            if not verdicts:
                raise
            notes.append(f"interrupted: {len(verdicts)} of {len(methods)} methods are audited")
    planted = {subject.name: subject.planted.summary for subject in subjects if subject.planted is not None}
    return AuditResult(checks, verdicts, by_head, tuple(dict.fromkeys(notes)), planted, len(images), examples)


def _of_head(given: Any, key: Any, what: str, shape: Sequence[int]) -> Tensor | None:
    """Return the masks or counterfactuals of a head, of the shape of `images` with channels or without."""
    value: Any = given.get(key) if isinstance(given, Mapping) else given
    if value is None:
        return None
    if not isinstance(value, Tensor) or tuple(value.shape) != tuple(shape):
        given_shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{what} of {given_shape} do not fit: give a tensor of {tuple(shape)}")
    if not torch.isfinite(value).all():
        raise UserError(f"{what} hold values that are not finite")
    if value.ndim == 3 and not ((value == 0) | (value == 1)).all():
        raise UserError(f"{what} hold values between: give True for the right pixels, False for others")
    return value


class _Subject:
    """A head under audit: what its methods are compared with. Controls use the first `few` images."""

    def __init__(
        self,
        net: nn.Module,
        key: str | int | None,
        images: Tensor,
        untrained: Sequence[nn.Module],
        masks: Tensor | None,
        others: Tensor | None,
        progress: Callable[[str], None],
    ) -> None:
        self.name, self.images, self.masks, self.others = "" if key is None else str(key), images, masks, others
        self.net, self.untrained = HeadWrapper(net, key), [HeadWrapper(other, key) for other in untrained]
        with torch.no_grad():
            parts = [self.net.probabilities(batch) for batch in images.split(batch_size(images))]
        self.probabilities = torch.cat(parts)
        order = self.probabilities.argsort(dim=1, descending=True)
        self.targets, self.second = order[:, 0], order[:, 1]
        small = batch_size(images) >= 100  # large images take long: fewer are used
        self.few = min(len(images), max(SOME, len(images) // 2) if small else SOME)
        self.steps, self.trials = (14, TRIALS) if small else (7, TRIALS // 2)
        self.mosaics = self._mosaics()
        self.notes: list[str] = []
        if masks is not None:
            mixed = masks.bool().flatten(1).any(dim=1) & ~masks.bool().flatten(1).all(dim=1)
            if not mixed.any():
                raise UserError(f"masks of {self.net.title}: no image has right pixels and others")
            if not mixed.all():
                self.notes.append(
                    f"{self.net.title}: the masks of {int((~mixed).sum())} of {len(images)} images are empty or full"
                )
            self.masks = masks.bool() & mixed[:, None, None]
        self.planted = self._plant(progress)
        if others is not None:
            self.others = others = others.to(images)
            with torch.no_grad():
                answers = [self.net(batch).argmax(dim=1) for batch in others.split(batch_size(images))]
            self.changed = torch.cat(answers) != self.targets
            if not self.changed.any():
                self.notes.append(f"{self.net.title}: no counterfactual changes the answer, so pairs are not checked")
        for wrapper in (*self.untrained, *([self.planted.net] if self.planted else [])):
            wrapper.unsteady(images)  # once, for all duplicates
            wrapper.classes(images)
        if self.net.unsteady(images):
            self.notes.append(f"{self.net.title}: {self.net.unsteady(images)}, so no method can be steady")
        self.scores: dict[str, dict[str, Tensor]] = {}  # of the trivial maps
        self.controls: list[Check] = []
        progress(f"{self.net.title}: controls")
        self._grade_controls()

    def _plant(self, progress: Callable[[str], None]) -> Planted | None:
        title = self.net.title
        try:
            planted = plant(self.net, self.images, self.few, lambda text: progress(f"{title}: {text}"))
        except UserError as error:
            self.notes.append(f"{title}: no marker could be planted ({error}), so no method is cleared")
            return None
        if planted.accuracy >= LEARNED and len(planted.images) < 8:
            self.notes.append(f"{title}: too few images for a planted marker, so no method is cleared; give more")
            return None
        if planted.accuracy < LEARNED:
            self.notes.append(
                f"{title}: the network did not learn the planted marker ({planted.accuracy:.0%} of its answers follow "
                "it), so no method is cleared"
            )
            return None
        return planted

    def _mosaics(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return mosaics (M, C, 2 H, 2 W) of four images, the cell (M,) that alone shows a class, and that class (M,);
        None where the network takes no larger images, or answers one class only."""
        sure, classes = self.probabilities.max(dim=1)
        order = sure.argsort(descending=True)
        by_class = [order[classes[order] == number] for number in classes.unique()]
        if len(by_class) < 2:
            return None
        generator, built, asked = torch.Generator().manual_seed(0), [], []
        for number in range(self.trials):
            members = by_class[number % len(by_class)]
            others = torch.cat([rows for rows in by_class if rows is not members])
            rows = others[torch.randint(len(others), (4,), generator=generator)]
            rows[number % 4] = members[number // len(by_class) % len(members)]
            four = self.images[rows]
            built.append(torch.cat([torch.cat([*four[:2]], dim=2), torch.cat([*four[2:]], dim=2)], dim=1))
            asked.append(classes[members[0]])
        mosaics = torch.stack(built)
        try:
            with torch.no_grad():
                self.net(mosaics[:1])
        except (RuntimeError, AssertionError, ValueError):  # the network takes images of one size
            return None
        return mosaics, torch.arange(self.trials) % 4, torch.stack(asked)

    def _grade_controls(self) -> None:
        """Score the maps that need no network."""
        for name, method in TRIVIAL_MAPS.items():
            maps = method(self.images)
            scores = {CURVES: self.curves(maps), **self.truths(maps.cpu())}
            if self.planted is not None:
                marked = method(self.planted.images)
                scores[PLANTED] = contrast(*marker_and_lookalike(marked.cpu(), self.planted))
            self.scores[name] = scores
        if self.others is not None:
            self.scores[EXCHANGE] = {PAIRS: self.truths(self._exchange_gain())[PAIRS]}
        for name, scores in self.scores.items():
            if PLANTED in scores and self.planted is not None:
                scores = {**scores, PLANTED: lowest_half(scores[PLANTED], self.planted)}
            known = {check: values for check, values in scores.items() if not values.isnan().all()}
            self.controls += [_check(name, self.name, check, values) for check, values in known.items()]

    def best(self, check: str) -> Tensor:
        """Return the scores of the best trivial map."""
        known = [self.scores[name][check] for name in TRIVIAL_MAPS]
        return max(known, key=lambda scores: float(scores.nanmean()))

    def curves(self, maps: Tensor) -> Tensor:
        """Return the area under the insertion curve minus that under the deletion curve, float64 (few,)."""
        images, targets = self.images[: self.few], self.targets[: self.few]
        both = insertion_deletion(self.net, maps[: self.few], images, targets, self.steps)
        areas = {name: torch.trapezoid(curve, dim=1) / self.steps for name, curve in both.items()}
        return (areas["insertion"] - areas["deletion"]).double().cpu()

    def truths(self, maps: Tensor) -> dict[str, Tensor]:
        """Return {check: scores} of the first maps (n, H, W) against what the caller knows."""
        scores = {}
        if self.masks is not None:
            scores[PIXELS] = rank_accuracy(maps, self.masks[: len(maps)].cpu())
        if self.others is not None:
            away = (self.images - self.others)[: len(maps)].abs().sum(dim=1).double().cpu()
            evidence = maps.double().clamp(min=0)
            weighted = (evidence * away / away.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)).sum(dim=(1, 2))
            total = evidence.sum(dim=(1, 2))
            share = weighted / total.where(total > 0, 1)
            scores[PAIRS] = share.where(self.changed[: len(maps)].cpu(), torch.nan)
        return scores

    def _exchange_gain(self) -> Tensor:
        """Return the drop of the class score when a square of the image is exchanged for the counterfactual's."""
        window, channels = max(2, min(self.images.shape[2:]) // 8), self.images.shape[1]
        step = max(1, window // 2)
        settings = {"sliding_window_shapes": (channels, window, window), "strides": (channels, step, step)}
        assert self.others is not None
        batches = (values.split(batch_size(self.images)) for values in (self.images, self.targets, self.others))
        with torch.no_grad():
            drops = [
                Occlusion(self.net).attribute(images, target=targets, baselines=others, **settings)
                for images, targets, others in zip(*batches, strict=True)
            ]
        return torch.cat(drops).sum(dim=1).cpu()


class _Grader:
    """A method on a head: its checks and the verdict."""

    def __init__(self, subject: _Subject, name: str, method: Method, progress: Callable[[str], None]) -> None:
        progress(f"{method_title(name)}, {subject.net.title}")
        self.subject, self.name, self.method, self.head = subject, name, method, subject.name
        # Copies, so that a method that changes a network harms no other.
        self.net, self.untrained = subject.net.duplicate(), [other.duplicate() for other in subject.untrained]
        self.checks: list[Check] = []
        self.warnings: tuple[str, ...] = ()
        self.refusal = ""
        self.example: Example | None = None
        try:
            self._grade()
        except UserError as error:
            self.refusal, self.checks = str(error), []

    def _grade(self) -> None:
        subject, few = self.subject, self.subject.few
        known = subject.masks is not None or subject.others is not None
        used = slice(None if known else few)
        result = self._attribute(self.net, subject.images[used], subject.targets[used])
        self.maps, self.warnings = result.maps, result.warnings
        self.untrained_maps = self._untrained(subject.images[:few], subject.targets[:few])
        self.example = Example(subject.images[0].cpu(), self.maps[0], self.untrained_maps[0])
        if subject.planted is not None:
            self._planted(replace(subject.planted, net=subject.planted.net.duplicate()))
        curves, untrained = subject.curves(self.maps), subject.curves(self.untrained_maps)
        self._add(CURVES, curves, _better(curves - subject.scores[RANDOM][CURVES]))
        decides = subject.planted is None
        self._add(CURVES_GAIN, curves - untrained, _better(curves - untrained) if decides else None)
        alike = evidence_rank_correlation(self.maps[:few], self.untrained_maps)
        self._add(LIKENESS, alike, _at_most(alike, 0.5, 0.8))
        for check, scores in subject.truths(self.maps).items():
            self._add(check, scores, _better(scores - subject.scores[RANDOM][check]))
            if subject.masks is not None and check == PIXELS:
                inside = subject.masks[:few].cpu()
                for where, kept in ((INSIDE, inside), (OUTSIDE, ~inside)):
                    self._add(
                        where, evidence_rank_correlation(self.maps[:few] * kept, self.untrained_maps * kept), None
                    )
                self._add(PIXELS_GAIN, scores[:few] - subject.truths(self.untrained_maps)[PIXELS], None)
        if subject.mosaics is not None:
            with suppress(UserError):  # as for baselines of another size
                self._mosaics(*subject.mosaics)
        self._axioms(result)

    def _attribute(self, net: HeadWrapper, images: Tensor, targets: Tensor) -> Attribution:
        try:
            return attribute_head(net, images, targets, self.method, name=self.name)
        except UserError:
            raise
        except Exception as error:  # of a method of the user's
            raise UserError(f"{self.name} ends with {type(error).__name__}: {one_line(error)}") from error

    def _untrained(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the maps of random weights: every copy gets its share of the images."""
        shares = zip(self.untrained, images.tensor_split(UNTRAINED), targets.tensor_split(UNTRAINED), strict=True)
        return torch.cat([self._attribute(net, part, classes).maps for net, part, classes in shares if len(part)])

    def _add(self, check: str, scores: Tensor, passed: bool | None) -> None:
        if not scores.isnan().all():
            self.checks.append(_check(self.name, self.head, check, scores, passed))

    def _planted(self, planted: Planted) -> None:
        ones = torch.ones(len(planted.images), dtype=torch.int64, device=planted.images.device)
        maps = self._attribute(planted.net, planted.images, ones).maps
        signed, positive = (contrast(*marker_and_lookalike(values, planted)) for values in (maps, maps.clamp(min=0)))
        low = -torch.inf if signed.mean() >= positive.mean() else 0.0  # the sign of a plain gradient is no evidence
        before = self._attribute(planted.net, without_marker(planted), ones).maps.clamp(min=low)
        maps = maps.clamp(min=low)
        marker, lookalike = marker_and_lookalike(maps, planted)
        scores = contrast(marker, lookalike)
        better = _better(scores - self.subject.best(PLANTED))
        half = lowest_half(scores, planted)
        self._add(PLANTED, half, better and _at_least(half, *CONTRAST))
        for_other = self._attribute(planted.net, planted.images, 0 * ones).maps.clamp(min=low)
        other = marker_and_lookalike(for_other, planted)
        apart = contrast(marker - lookalike, other[0] - other[1])
        self._add(CLASS, apart, _better(apart))
        untrained = marker_and_lookalike(self._untrained(planted.images, ones).clamp(min=low), planted)
        gain = scores - contrast(*untrained)
        self._add(GAIN, gain, _better(gain))
        place = lowest_half(grows_at_marker(maps - before, planted), planted)
        self._add(PLACE, place, _at_least(place, *PLACEMENT))
        fixed = brightest_fixed_place(maps, planted)
        self._add(FIXED, fixed, _at_most(fixed, *SAME_PLACE))
        assert self.example is not None
        self.example = replace(self.example, marked=planted.images[0].cpu(), marked_heatmap=maps[0])

    def _mosaics(self, mosaics: Tensor, cells: Tensor, classes: Tensor) -> None:
        maps = self._attribute(self.net, mosaics, classes).maps
        height, width = self.subject.images.shape[2:]
        inside = torch.zeros_like(maps, dtype=torch.bool)
        for mask, cell in zip(inside, cells.tolist(), strict=True):
            mask[cell // 2 * height :, cell % 2 * width :][:height, :width] = True
        scores = mass_accuracy(maps, inside)
        self._add(GRID, scores, _better(scores - 0.25))

    def _axioms(self, result: Attribution) -> None:
        """Check what must hold whatever is right."""
        subject = self.subject
        images, targets = subject.images[:FEW], subject.targets[:FEW]
        pairs = list(zip(images.split(1), targets.split(1), strict=True))
        alone = torch.cat([self._attribute(self.net, image, target).maps for image, target in pairs])
        again = torch.cat([self._attribute(self.net, image, target).maps for image, target in pairs[:2]])
        for check, first, second in ((TWICE, again, alone[:2]), (ALONE, alone, self.maps[:FEW])):
            apart = _difference(first, second)
            self._add(check, apart, _at_most(apart, *MAX_DIFFERENCE))
        if result.gaps is not None:
            share = (~(result.gaps <= MAX_GAP)).double()
            self._add(SUM, share, _at_most(share, 0.05, 0.05))
        if (self.maps < 0).any() and (self.maps > 0).any():
            right = self._signs()
            self._add(SIGN, right, _at_least(right, *SIGNS))

    def _signs(self) -> Tensor:
        """Return the share of two classes, the most and the second most probable, of which removing the positive
        evidence lowers the score more than removing the negative evidence, (n,)."""
        subject, count = self.subject, self.subject.trials
        images, right = subject.images[:count], []
        for targets in (subject.targets[:count], subject.second[:count]):
            maps = self._attribute(self.net, images, targets).maps[:, None].to(images.device)
            with torch.no_grad():
                scores = [
                    subject.net(images * kept).gather(1, targets[:, None])[:, 0] for kept in (maps <= 0, maps >= 0)
                ]
            right.append(scores[0] < scores[1])
        return torch.stack(right).double().mean(dim=0).cpu()

    @property
    def verdict(self) -> Verdict:
        if self.refusal:
            return AVOID, f"it gives no map: {self.refusal}"
        rows = {row.check: row for row in self.checks}
        marker = self.subject.planted is not None
        order = [*DECISIVE, *sorted(ADVISORY, key=lambda check: check not in WITHOUT_MARKER)]
        for check in order:
            reason = DECISIVE.get(check) or ADVISORY[check]
            if check in rows and rows[check].passed is False:
                decides = check in DECISIVE or (check in WITHOUT_MARKER and not marker)
                return AVOID if decides else CARE, f"{reason} ({check}: {rows[check].value:.2f})"
        warnings = [text for text in self.warnings if not text.startswith(DISTRUST)]  # the sum has its own check
        if warnings:
            return CARE, warnings[0]
        if not marker:
            return CARE, "no marker could be planted to test it"
        for check in DECISIVE:
            if check in rows and rows[check].passed is None:
                return CARE, f"a check is undecided ({check}: {rows[check].value:.2f})"
        return USE, "it fails no check"


def _compare_heads(graded: Sequence[_Grader]) -> None:
    """Check whether maps change more with the head than they do with random weights."""
    graded = [grader for grader in graded if not grader.refusal]
    for grader in graded:
        likeness = []
        for other in graded:
            if other is not grader:
                few = grader.subject.few
                trained = evidence_rank_correlation(grader.maps[:few], other.maps[:few])
                likeness.append(evidence_rank_correlation(grader.untrained_maps, other.untrained_maps) - trained)
        if likeness:
            scores = torch.stack(likeness).nanmean(dim=0)
            grader._add(HEADS, scores, None)


def _overall(by_head: Mapping[str, Verdict]) -> Verdict:
    """Return the verdict on a method from those of its heads."""
    words = {word for word, _ in by_head.values()}
    if len(words) == 1:
        return next(iter(by_head.values()))
    heads = {word: ", ".join(head for head, (verdict, _) in by_head.items() if verdict == word) for word in words}
    reason = next(why for word in (AVOID, CARE) for verdict, why in by_head.values() if verdict == word)
    parts = [f"{word}: {heads[word]}" for word in (USE, CARE, AVOID) if word in heads]
    return CARE, f"{'; '.join(parts)}. {reason[0].upper()}{reason[1:]}"


def _check(method: str, head: str, check: str, scores: Tensor, passed: bool | None = None) -> Check:
    return Check(method, head, check, *bootstrap_ci(scores)[:3], passed)


def _better(differences: Tensor) -> bool:
    """Return whether the mean is above 0 with 95 % confidence."""
    return bootstrap_ci(differences)[1] > 0


def _at_least(scores: Tensor, passes: float, fails: float) -> bool | None:
    mean = float(scores.nanmean())
    return True if mean >= passes else False if mean < fails else None


def _at_most(scores: Tensor, passes: float, fails: float) -> bool | None:
    mean = float(scores.nanmean())
    return True if mean <= passes else None if mean <= fails else False


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """Return the absolute difference of two maps of each image, relative to the larger, (N,)."""
    first, second = first.double(), second.double()  # sums of large values overflow in float32
    size = torch.maximum(first.abs().sum(dim=(1, 2)), second.abs().sum(dim=(1, 2)))
    return (first - second).abs().sum(dim=(1, 2)) / size.where(size > 0, 1)
