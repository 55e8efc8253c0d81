"""What the stages of a run will need, looked for before anything is computed, loaded or fetched.

One error names everything that is missing, so that nobody mends a long run one refusal at a time. Thresholds that
cannot be judged here give way to the task's fallbacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from .. import registry
from ..config import Config
from ..console import say
from ..errors import IdcError
from ..runs.places import is_main_process
from ..runs.recipe import Recipe

T = TypeVar("T")
CHECKED = ("depth_search", "finetune", "tsopt", "evaluate")  # stages that make pictures of a data set and judge them


def made_ready(stage: str, config: Config, recipe: Recipe) -> Config:
    """Check a run before it begins.

    Returns:
        the configuration, with thresholds that can be judged here.

    Raises:
        IdcError: names all that is missing, and how to get each.
    """
    wanted = config.compress.stages if stage == "compress" else [stage]
    stages = [name for name in wanted if name in CHECKED]
    if not stages:
        return config
    needs = _Needs(config, recipe, stages, chained=stage == "compress")
    config = needs.with_thresholds()
    if is_main_process():
        needs.check(config)
    return config


class _Needs:
    """The stages to come, and what is missing for them."""

    def __init__(self, config: Config, recipe: Recipe, stages: Sequence[str], *, chained: bool) -> None:
        self.config, self.recipe, self.stages = config, recipe, stages
        self.keeps_best = config.finetune.keep == "best" or (chained and config.finetune.keep == "auto")
        self.faults: list[str] = []
        self._search: Any = None

    @property
    def judges(self) -> bool:
        """Whether thresholds will be looked at."""
        searched = "depth_search" in self.stages and self.config.depth is None
        return searched or ("finetune" in self.stages and self.keeps_best)

    def with_thresholds(self) -> Config:
        """The configuration with the task's own thresholds, or the first fallback, that can be judged; a line says so.

        Thresholds that the user chose stay.
        """
        config, settings = self.config, self.config.depth_search
        own = (config.task.models.get(config.model.name) or {}).get("thresholds")
        if not self.judges or not settings.fallbacks or settings.thresholds != own:
            return config
        reasons = self._cannot_judge(settings.thresholds)
        if not reasons:
            return config
        for thresholds in settings.fallbacks:
            if not self._cannot_judge(thresholds):
                taken, left = (" and ".join(map(str, self._parsed(value))) for value in (thresholds, own))
                say(f"thresholds: {taken}, in place of the task's own, {left}: {'; '.join(reasons)}")
                return dataclasses.replace(config, depth_search=dataclasses.replace(settings, thresholds=thresholds))
        return config

    def check(self, config: Config) -> None:
        """Raise IdcError where something is missing."""
        from ..bench.selection import choose_photographs
        from ..sources.load import check_source
        from ._values import configured_search, data_of, loading_settings, make_task

        self.config = config
        self._try(lambda: make_task(config, self.recipe.task))
        self._try(lambda: check_source(self.recipe.task, self.recipe.model, config.resolution_px))
        self._try(lambda: loading_settings(config, self.recipe))
        if "tsopt" in self.stages:
            self._try(lambda: configured_search(config))

        # 1. photographs, and what they bring along
        data, seen = data_of(config), self.recipe
        if {"depth_search", "tsopt"} & {*self.stages} or self.judges:
            self._try(self._searched)
        if "finetune" in self.stages:
            self._try(self._check_training)
        if "evaluate" in self.stages:
            if data.split != "auto" or data.path is not None:
                seen = self._try(self._after_the_searches) or seen
            photos = self._try(lambda: choose_photographs(data, seen, "evaluate", config.evaluate.num_samples))
            if photos is not None:
                self._check_captions(config.evaluate.metrics, "evaluate.metrics", photos, config.evaluate.num_samples)

        # 2. metrics
        if self.judges:
            self.faults += self._cannot_judge(config.depth_search.thresholds, explicit=True)
        for name in self._metrics():
            self._try(partial(self._make, name))
        faults = list(dict.fromkeys(self.faults))
        if len(faults) == 1:
            raise IdcError(faults[0])
        if faults:
            listed = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults, start=1))
            raise IdcError(f"nothing was started, because {len(faults)} things are missing: {listed}")

    def _try(self, action: Callable[[], T]) -> T | None:
        """The action's result; None where it finds a fault, which is kept."""
        try:
            return action()
        except IdcError as error:
            self.faults.append(str(error))
            return None

    def _metrics(self) -> Iterable[str]:
        """Metrics besides those of the thresholds without which a stage cannot run."""
        config = self.config
        if "tsopt" in self.stages:
            yield config.tsopt.metric
        if "finetune" in self.stages:
            yield from config.finetune.metrics
        if "evaluate" in self.stages:
            yield from (name for name in config.evaluate.metrics if not name.endswith("?"))

    def _make(self, name: str) -> None:
        """Make a metric as a stage will, where it has weights that may be missing; they stay in memory for the stage.

        Raises:
            IdcError: a package or a file is missing, or a file is not what it should be.
        """
        from ..adapters.pipeline import device_of
        from ..bench.bench import make_metric

        if registry.load("metric", name, "metric").Metric.weights:
            make_metric(name, self.config.metrics.get(name, {}), device_of(self.config.device))

    def _parsed(self, thresholds: Any) -> list[Any]:
        from ..bench.thresholds import parse_thresholds

        return parse_thresholds(thresholds)

    def _cannot_judge(self, thresholds: Any, *, explicit: bool = False) -> list[str]:
        """Why some thresholds cannot be judged here; empty if they can.

        Args:
            explicit: the user wants these, so the number of images is the user's choice, too.
        """
        try:
            parsed = self._parsed(thresholds)
        except IdcError as error:
            return [str(error)]
        reasons, number = [], self.config.depth_search.num_samples
        for name in dict.fromkeys(threshold.metric for threshold in parsed):
            metric = registry.load("metric", name, "depth_search.thresholds").Metric
            if number < metric.least_images and not explicit:
                reasons.append(
                    f"{name} wants {metric.least_images:,} images or more, and depth_search.num_samples is {number}"
                )
                continue
            try:
                if not self._brings_captions(name, self._searched(), number):
                    reasons.append(self._without_captions(name))
                    continue
                self._make(name)
            except IdcError as error:
                reasons.append(str(error))
        return reasons

    def _check_captions(self, names: Sequence[str], key: str, photos: Any, number: int) -> None:
        for name in names:
            if not name.endswith("?") and not self._brings_captions(name, photos, number):
                self.faults.append(f"{key}: {self._without_captions(name)}")

    def _brings_captions(self, name: str, photos: Any, number: int) -> bool:
        """Whether photographs have what a metric wants of captions; those of their own prompts alone count."""
        if "captions" not in registry.load("metric", name, "metric").Metric.needs:
            return True
        return not self.config.prompts() and any(photo.captions for photo in photos[:number])

    def _without_captions(self, name: str) -> str:
        from ._values import data_of

        if self.config.prompts():
            return f"{name} wants captions of every input and its edited image, which prompt= does not bring"
        return (
            f"{name} wants captions of every input and its edited image, which {data_of(self.config).label} does not "
            "bring; give a metadata.jsonl with file_name, prompt, input_caption and output_caption, or "
            "data=instruct_pix2pix"
        )

    def _searched(self) -> Any:
        """The photographs that the searches choose from.

        Raises:
            IdcError: there are none.
        """
        from ..bench.selection import choose_photographs
        from ._values import data_of

        if self._search is None:
            count = max(
                self.config.depth_search.num_samples if self.judges or "depth_search" in self.stages else 0,
                self.config.tsopt.num_samples if "tsopt" in self.stages else 0,
            )
            self._search = choose_photographs(data_of(self.config), self.recipe, "search", count)
        return self._search

    def _check_training(self) -> None:
        """Raise IdcError where the training set has too little, or too little of a photograph."""
        from ..bench.selection import choose_photographs
        from ..bench.training_samples import held_out
        from ._values import data_of, make_task

        photos = choose_photographs(data_of(self.config), self.recipe, "train")
        held_out(photos, self.config.finetune.num_samples)
        task, prompts = make_task(self.config, self.recipe.task), self.config.prompts()
        for index, photo in enumerate(photos[:100]):
            fault = task.training_fault(photo, prompts[index % len(prompts)] if prompts else photo.prompt or None)
            if fault is not None:
                raise IdcError(fault)

    def _after_the_searches(self) -> Recipe:
        """The recipe as if the searches had seen their photographs already, which an evaluation then leaves out."""
        from ..bench.selection import choose_photographs
        from ..bench.training_samples import LISTED
        from ..images.photo_sets import digests_of
        from ._values import data_of

        rows = []
        for name in self.stages:
            photos, number = self._searched(), 0
            if name == "finetune":
                photos = choose_photographs(data_of(self.config), self.recipe, "train")
                number = len(photos) if len(photos) <= LISTED else 0
            elif name == "tsopt":
                number = self.config.tsopt.num_samples
            elif name == "depth_search" and self.config.depth is None:
                number = self.config.depth_search.num_samples
            seen = digests_of(photos, range(min(number, len(photos))))
            if seen or name == "finetune":
                rows.append({"stage": name, "photographs": seen})
        return dataclasses.replace(self.recipe, provenance=(*self.recipe.provenance, *rows))
