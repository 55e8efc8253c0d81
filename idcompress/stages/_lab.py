"""What studies and comparisons share: one model in several conditions, over images that a search may see and images
that it may not.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from torch import Tensor

from ..adapters.layers import names_of_layers
from ..bench.bench import Bench
from ..bench.comparison import affordable_steps, paired
from ..bench.costs import called_steps, gmacs_of_a_step
from ..bench.fitting import Lists
from ..bench.thresholds import missed, parse_thresholds
from ..bench.translate import wants_coefficients
from ..config import Config
from ..console import say
from ..core.depth_search import FullModelFailsError, depth_search
from ..core.plan import Plan, Step
from ..core.sample import Denoise
from ..costs.parameters import Parameters
from ..errors import IdcError
from ..metrics._metric import MetricValue
from ..runs import files, timing
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..types import Schedule, Series, Teacher
from ._values import bench_for, check_process, configured_search, fit_settings

Over = int | list[float] | Plan  # a number of uniform steps, timesteps, or all that is sampled


class Lab:
    """A model, its images, and a trace from which a plan that was sampled once is read back.

    Args:
        num_evaluated: images of the results, of photographs that neither the recipe's stages nor this study's search
            have seen.
        num_searched: images of this study's searches; 0 where it searches nothing.
        unfitted: why numbers of a sampler cannot be fitted here; empty where they are, on the search's images.

    Attributes:
        many: the sampler of many uniform steps, which need no numbers.

    Raises:
        IdcError: no image is left, or data.split gives the search and the results the same photographs, or the
            configured sampler wants numbers that cannot be fitted.
    """

    def __init__(
        self,
        config: Config,
        recipe: Recipe,
        run_dir: RunDir,
        *,
        num_evaluated: int,
        num_searched: int = 0,
        unfitted: str = "",
    ) -> None:
        self.config, self.trace, self.benches = config, run_dir.trace(), dict[str, Bench]()
        self.many = "ddim" if wants_coefficients(config.sampler) else config.sampler
        if unfitted and self.many != config.sampler:
            raise IdcError(
                f"study={config.study['name']} {unfitted}, so that there is nothing to fit the numbers of "
                f"sampler={config.sampler} to; use sampler=ddim here"
            )
        self.lists = dict[str, Lists]()
        self.asked: list[dict[str, Any]] = []  # rows of the trace, in the order in which they were wanted
        configured_search(config)  # refuses what no search could run with
        if num_searched:
            self.benches["search"] = bench_for(config, recipe, split="search", num_samples=num_searched)
            photographs = self.benches["search"].photographs
            recipe = recipe.derive({"stage": "study", "photographs": photographs})
        self.benches["evaluate"] = bench_for(config, recipe, split="evaluate", num_samples=num_evaluated)
        self.model, self.recipe = self.benches["evaluate"].model, recipe
        check_process(config, self.model.process)
        if num_searched and {*photographs.values()} & {*self.benches["evaluate"].photographs.values()}:
            raise IdcError(
                f"data.split={config.data.split} gives search and results the same photographs; leave it at auto"
            )

    def arm(self, depth: int | None = None, /, **changes: Any) -> "Arm":
        """The model in one condition.

        Args:
            depth: None for the recipe's. At another depth than that, fine-tuned weights give way to the model's own.
            changes: configuration keys, like sampler="dpm_solver"; the others are the run's.
        """
        recipe = self.recipe
        if depth not in (None, recipe.depth):
            cut = None if depth is None or depth == self.model.full_depth else self.model.chosen(depth)
            recipe = dataclasses.replace(recipe, cut=cut, weights={})
        return self.of(recipe, **changes)

    def of(self, recipe: Recipe, **changes: Any) -> "Arm":
        """A recipe's cut and weights, of this model, in one condition."""
        return Arm(self, dataclasses.replace(self.config, **changes), recipe)

    def full(self, **changes: Any) -> "Arm":
        """The uncut model with its own weights."""
        return self.arm(self.model.full_depth, **changes)

    def shallowest(self, over: Over, **changes: Any) -> int:
        """The depth that Alg. 1 chooses on the search's images: cut to it, the model still meets
        depth_search.thresholds, sampled as the full model is whose result they compare with.

        Args:
            over: a number of uniform steps, or timesteps.
            changes: configuration keys, as for `arm`; where the sampler wants numbers, the default is DDIM.

        Raises:
            IdcError: the full model itself misses a threshold.
        """
        thresholds = parse_thresholds(self.config.depth_search.thresholds)
        names = list(dict.fromkeys(threshold.metric for threshold in thresholds))
        changes = {"sampler": self.many, **changes}
        against = (self.full(**changes), over)

        def passes(depth: int) -> bool:
            return not missed(thresholds, self.arm(depth, **changes).measure("search", over, names, against))

        try:
            return depth_search(passes, self.model.full_depth, min_depth=self.config.depth_search.min_depth)[0]
        except FullModelFailsError:
            raise IdcError(
                "the full model already misses depth_search.thresholds, so no depth can be chosen; lower a bound there"
            ) from None

    def images_note(self) -> str:
        """Which images the numbers are from."""
        evaluated = self.benches["evaluate"]
        text = f"results: {len(evaluated.examples)} images of {len(evaluated.photographs)} photographs"
        if "search" in self.benches:
            searched = self.benches["search"]
            text += (
                f" that no search has seen; searches: {len(searched.examples)} of {len(searched.photographs)} others"
            )
        return text


@dataclass(frozen=True)
class Arm:
    """A model in one condition: a depth, a sampler, guidance."""

    lab: Lab
    config: Config
    recipe: Recipe

    @cached_property
    def pipeline(self) -> Any:
        return self.lab.model.for_recipe(self.recipe)

    @property
    def key(self) -> dict[str, Any]:
        """How the trace names it."""
        cut = {} if self.recipe.cut is None or self.recipe.depth else {"cut": self.recipe.cut.to_json()}
        model = {"depth": self.recipe.depth, "fine_tuned": bool(self.recipe.weights), **cut}
        return {**model, "sampler": self.config.sampler, "guidance": self.config.guidance()}

    @cached_property
    def costs(self) -> tuple[float, float]:
        """GMACs of a step for one image without guidance, and parameters by the paper's rule, of all its networks."""
        task = self.lab.benches["evaluate"].task
        gmacs = gmacs_of_a_step(task, self.pipeline, self.config.resolution_px)
        return gmacs, Parameters().measure(task.networks(self.pipeline))["params_paper"]

    def bench(self, split: str) -> Bench:
        return self.lab.benches[split]

    def plan(self, over: Over) -> Plan:
        """What is sampled; for a sampler that wants numbers, still without them."""
        if isinstance(over, Plan):
            return over
        timesteps = self.lab.benches["evaluate"].uniform(over) if isinstance(over, int) else over
        return self._listed(timesteps)

    def _listed(self, timesteps: Sequence[float], skip: Sequence[tuple[str, ...]] = ()) -> Plan:
        return Plan.over(timesteps, sampler=self.config.sampler, guidance=self.config.guidance(), skip=skip)

    def aim(self, over: Over) -> Plan:
        """What others are compared with, and numbers are fitted to: a plan that needs none itself."""
        plan = self.plan(over)
        return dataclasses.replace(plan, sampler=self.lab.many) if self._fits(plan) else plan

    def lists(self, against: "Target") -> Lists:
        """Plans over the search's images; a sampler's numbers are fitted to what the results are compared with."""
        many, bench, kept = against[0].aim(against[1]), self.bench("search"), self.lab.lists
        key = files.digest([self.key, against[0].key, many.to_json()])
        if key not in kept:
            kept[key] = Lists(bench, self.pipeline, fit_settings(self.config), cache(lambda: self._teacher(against)))
        return kept[key]

    def _teacher(self, against: "Target") -> Teacher:
        """The many-step run over the search's images; the trace keeps what it took when it was first made."""
        many, bench, trace = against[0].aim(against[1]), self.bench("search"), self.lab.trace
        key = _teacher_key(against, many)
        with timing.record() as spent:
            run = bench.reference_run(against[0].recipe, many, "reference")
        if trace.find(**key) is None:
            work = len(many) * len(bench.examples)
            seconds = round(math.fsum(spent.values()), 3)
            trace.append({**key, "step_images": work, "evaluation_seconds": seconds})
        return run

    def _run(self, against: "Target") -> Teacher:
        """The same, noted among what was asked for."""
        run = self.lists(against).run()
        self._note_run(against)
        return run

    def _note_run(self, against: "Target") -> None:
        row = self.lab.trace.find(**_teacher_key(against, against[0].aim(against[1])))
        self.lab.asked += [] if row is None else [row]

    def ready(self, over: Over, against: "Target") -> Plan:
        """The plan as it is kept, with numbers fitted on the search's images where its sampler wants some."""
        plan = self.plan(over)
        return self.lists(against).finished(plan) if plan.coefficients is None else plan

    def results(self, split: str, over: Over) -> Tensor:
        """Images (N, 3, H, W), float32 in [0, 1], kept on disk."""
        plan = self.plan(over)
        return self.bench(split).references(self.recipe, plan, f"{len(plan)} steps")

    def affordable(self, over: Over, other: "Arm") -> int:
        """Steps of another arm that cost what this one's do."""
        return affordable_steps(len(called_steps(self.plan(over))), self.costs[0], other.costs[0])

    def measure(
        self,
        split: str,
        over: Over,
        metrics: Sequence[str] = ("psnr",),
        against: "Target | None" = None,
        known: dict[str, float] | None = None,
    ) -> dict[str, MetricValue]:
        """Metrics of a plan; sampled once, then read from the trace.

        Args:
            split: "search" or "evaluate".
            over: a number of uniform steps, or timesteps. For results, numbers that the sampler wants are fitted to
                what they are compared with.
            against: the arm, and its steps, whose results `references` metrics compare with.
            known: goes into the trace's row, like {"gamma": 0.8}.

        Raises:
            ValueError: numbers are wanted, and there is nothing to fit them to.
        """
        plan, known = self.plan(over), known or {}
        if self._fits(plan):
            if against is None:
                raise ValueError(f"{plan.sampler}: numbers are fitted to a result, and none is named here")
            plan = self.ready(plan, against) if split == "evaluate" else plan
        timesteps = list(plan.timesteps)
        reference = None if against is None else {**against[0].key, "over": against[1]}
        key = {"split": split, **self.key, "timesteps": timesteps, "against": reference, "metrics": list(metrics)}
        if not plan.is_plain:
            key |= {"steps": [step.to_json() for step in plan.steps], "fill": plan.fill}
        if plan.coefficients is not None:
            key["coefficients"] = [list(row) for row in plan.coefficients]
        row = self.lab.trace.find(**key)
        work = self._work(split, plan, against)  # of known rows, too: later lists have beginnings in common with them
        if row is None:
            references = None if against is None else against[0].results(split, against[0].aim(against[1]))
            if against is not None and self._fits(plan):
                self.lists(against).run()  # its work is its own, whichever plan is the first to ask for it
            with timing.record() as spent:
                images = self._images(split, plan, against)
                found = self.bench(split).measure(metrics, images, references)
            values = {name: vars(value) for name, value in found.items()}
            took = {"step_images": work, "evaluation_seconds": round(math.fsum(spent.values()), 3)}
            row = self.lab.trace.append({**key, **known, "values": values, **took})
            say(f"  {self._words(split, timesteps, known)}: {_summary(values)}")
        self.lab.asked.append(row)
        if against is not None and self._fits(plan):
            self._note_run(against)
        return {name: MetricValue.of_json(value) for name, value in row["values"].items()}

    def _images(self, split: str, plan: Plan, against: "Target | None") -> Tensor:
        """Of a split's examples; those that only a search will ever look at are not kept on disk."""
        if against is None or self._is_kept(split, plan, against):
            return self.results(split, plan)
        lists = self.lists(against)
        return lists.bench.images_by_plan(
            self.pipeline, lists.plans(plan), f"{len(plan)} steps", beginnings=lists.beginnings
        )

    def _fits(self, plan: Plan) -> bool:
        """Whether numbers must be fitted before the plan can be sampled."""
        return plan.coefficients is None and wants_coefficients(plan.sampler)

    def _is_kept(self, split: str, plan: Plan, against: "Target") -> bool:
        """Whether a plan's images are kept on disk: results, and what more than one search looks at."""
        often = (self.plan(len(plan)), against[0].aim(against[1]))
        return split != "search" or (not self._fits(plan) and plan in often)

    def _work(self, split: str, plan: Plan, against: "Target | None") -> int:
        """Steps of images that a plan takes, whichever run sampled them; what lists have in common counts once.

        Those of a search's reference are 0: it is counted apart.
        """
        if against is not None and not self._is_kept(split, plan, against):
            return self.lists(against).work(plan)
        is_reference = against is not None and self.key == against[0].key and plan == against[0].aim(against[1])
        return 0 if is_reference and split == "search" else len(called_steps(plan)) * len(self.bench(split).examples)

    def search(self, num_inference_steps: int, against: "Target") -> Schedule:
        """The configured strategy's answer by PSNR over the search's images."""

        def score(timesteps: list[float], skip: Sequence[tuple[str, ...]] = (), **known: float) -> float:
            found = self.measure("search", self._listed(timesteps, skip), against=against, known=known)["psnr"]
            if found.value is None and not found.perfect:
                raise IdcError(f"the search compares images by psnr, which has no value here: {found.note}")
            return math.inf if found.value is None else found.value

        check_process(self.config, self.lab.model.process)
        return configured_search(self.config)(
            self.lab.model.process,
            num_inference_steps,
            score=score,
            teacher=lambda: self._run(against),
            denoiser=lambda: self._denoisers(self.plan(num_inference_steps), against),
            layers=names_of_layers(self.pipeline.unet),
        )

    def searched(self, num_inference_steps: int, against: "Target") -> Plan:
        """The plan over what the configured strategy finds, without the numbers that its sampler may want."""
        schedule = self.search(num_inference_steps, against)
        return self._listed(schedule.timesteps, schedule.skip)

    def _denoisers(self, plan: Plan, against: "Target") -> Iterator[tuple[Denoise, Tensor, Tensor]]:
        """Batches for a strategy that wants gradients; its calls of the networks are noted among what was asked for."""
        work: dict[str, Any] = {"split": "search", "step_images": 0, "evaluation_seconds": 0.0}
        self.lab.asked.append(work)
        for denoise, start, final in self.bench("search").denoisers(self.pipeline, plan, self._run(against).final):

            def counted(sample: Tensor, step: Step, cache: Any, inner: Denoise = denoise) -> tuple[Tensor, Any]:
                work["step_images"] += len(sample)
                return inner(sample, step, cache)

            yield counted, start, final

    def compare_searched(self, num_inference_steps: int, against: "Target") -> "Found":
        """Search, then measure what was found and uniform steps on images that the search has not seen."""
        schedule = self.search(num_inference_steps, against)
        uniform, searched = (
            self.measure("evaluate", over, against=against)["psnr"]
            for over in (num_inference_steps, self._listed(schedule.timesteps, schedule.skip))
        )
        columns = {
            "gamma": schedule.details.get("gamma"),
            "uniform (dB)": uniform.value,
            "searched (dB)": searched.value,
            "gain (dB)": difference(searched, uniform, self.config.seed),
        }
        return Found(schedule.timesteps, uniform, searched, columns)

    def _words(self, split: str, timesteps: list[float], known: dict[str, float]) -> str:
        depth = f"depth {self.recipe.depth}" if self.recipe.depth else "full depth"
        guidance = "".join(f", {name} {scale:g}" for name, scale in self.config.guidance().items())
        found = "".join(f", {name} {value:.4f}" for name, value in known.items())
        return f"{split}: {depth}, {self.config.sampler}{guidance}, {len(timesteps)} steps{found}"


Target = tuple[Arm, Over]  # whose results others are compared with


class Found(NamedTuple):
    """What a search found: its timesteps, PSNR of uniform and of found steps on unseen images, and a table row."""

    timesteps: list[float]
    uniform: MetricValue
    searched: MetricValue
    columns: dict[str, Any]


def _teacher_key(against: Target, many: Plan) -> dict[str, Any]:
    """How the trace names a many-step run over the search's images."""
    return {"split": "search", **against[0].key, "timesteps": list(many.timesteps), "against": None, "teacher": True}


def check_gamma(config: Config) -> None:
    """Refuse a study of gammas with a strategy that has none."""
    if config.timesteps["name"] != "gamma":
        raise IdcError(
            f"study={config.study['name']} compares gammas; timesteps={config.timesteps['name']} has none, use gamma"
        )


def difference(value: MetricValue, other: MetricValue, seed: int, *, higher_is_better: bool = True) -> dict[str, Any]:
    """The mean paired difference, its bootstrap interval and a verdict; empty where no image differs."""
    found = paired(value, other, "difference", higher_is_better=higher_is_better, seed=seed)
    return dict(found.get("difference", {}))


def verdicts(differences: Sequence[dict[str, Any]]) -> str:
    """Paired differences in words: "better in 3, no gain in 1 of 4"."""
    words = [found.get("verdict", "no gain") for found in differences]
    counts = [f"{word} in {words.count(word)}" for word in ("better", "worse", "no gain") if word in words]
    return f"{', '.join(counts)} of {len(words)}"


def series(label: str, rows: Sequence[dict[str, Any]], x: str, y: str) -> Series:
    """Two columns as a line of a chart, without rows that lack y; paired differences keep their intervals."""
    points, intervals = [], []
    for row in rows:
        value = row[y]
        if isinstance(value, dict):
            low, high = value.get("interval", (0.0, 0.0))
            intervals.append((low, high))
            value = value.get("mean", 0.0)
        if value is not None:
            points.append((row[x], value))
    return Series(label, points, intervals)


def _summary(values: dict[str, Any]) -> str:
    numbers = {name: value["value"] for name, value in values.items()}
    return ", ".join(f"{name} {'-' if number is None else f'{number:.4g}'}" for name, number in numbers.items())
