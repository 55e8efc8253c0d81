"""FixedTimestepsScheduler: DDIM over any list of timesteps inside unmodified diffusers pipelines."""

from collections.abc import Sequence
from typing import Any

import torch

# DiffusionPipeline looks SchedulerMixin up on the module of a class that it loads.
from diffusers import DDIMScheduler, SchedulerMixin  # noqa: F401
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from .core.ddim import ddim_step
from .core.fit import MAX_ORDER, Fitted
from .core.plan import Step
from .core.process import CLEAN, Level, Prediction, Process, RectifiedFlow, VariancePreserving, check_timesteps, predict
from .core.sample import Moment


def process_of(scheduler: Any) -> Process:
    """The process that a diffusers scheduler was configured for.

    Raises:
        ValueError: a scheduler of a process that is neither variance-preserving nor a rectified flow.
    """
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is not None:
        return VariancePreserving(products.detach().float().cpu(), scheduler.config.prediction_type)
    if "shift" in scheduler.config:  # the flow-matching schedulers
        return RectifiedFlow(scheduler.config.num_train_timesteps)
    raise ValueError(f"{type(scheduler).__name__} has neither a noise schedule nor a flow to sample by")


CARRIED = "fixed_timesteps"  # the module that brings FixedTimestepsScheduler in folders for plain diffusers
_OWN = ("timesteps", "eta", "coefficients")  # what DDIMScheduler does not know


class FixedTimestepsScheduler(DDIMScheduler):
    """DDIM that follows a list of timesteps kept in its configuration.

    `DDIMScheduler.step` takes the previous timestep to be `timestep - T // n`, whatever the list says, and lands
    elsewhere on any but its own sequences. Here each step goes to the next *position* of the list (repeats are legal)
    and the last listed step returns the predicted x_0, whatever `set_alpha_to_one` says.

    The list in the configuration wins over `num_inference_steps`, so a pipeline that knows nothing of lists follows
    it; a list given to `set_timesteps` wins over both. Without any list the steps are those of DDIMScheduler,
    moved down where steps_offset would take them out of the schedule.

    Args:
        timesteps: training-timestep indices, never increasing, within [0, num_train_timesteps - 1]; None for uniform.
        eta: of steps that are called with eta 0, as pipelines do that are told none; 1 samples ancestrally.
        coefficients: a row of numbers for each of the timesteps, which correct the steps of DDIM; they were fitted for
            this list, one model and its guidance (`sampler=fitted`), and hold for nothing else.
        The rest is DDIMScheduler's. The defaults are Stable Diffusion's noise schedule and no clipping.

    Raises:
        ValueError: the list is empty, increases or leaves the range, or coefficients do not go with it.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 1,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        timesteps: Sequence[int] | None = None,
        eta: float = 0.0,
        coefficients: Sequence[Sequence[float]] | None = None,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", *_OWN)}
        super().__init__(**arguments)
        if coefficients is not None:
            if timesteps is None or len(coefficients) != len(timesteps):
                raise ValueError("coefficients must have a row for each of the timesteps, which they were fitted for")
            self.register_to_config(coefficients=[[float(number) for number in row] for row in coefficients])
        if timesteps is not None:
            self.register_to_config(timesteps=check_timesteps(timesteps, num_train_timesteps))
            self.set_timesteps()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Start a run over `timesteps`, else the configured list, else `num_inference_steps` uniform steps."""
        chosen = timesteps if timesteps is not None else self.config.timesteps
        if self.config.coefficients is not None and list(chosen) != list(self.config.timesteps):
            raise ValueError(
                "this scheduler's coefficients were fitted for its own list; make one without them for others"
            )
        if chosen is not None:
            values = check_timesteps(chosen, self.config.num_train_timesteps)
            self.num_inference_steps = len(values)
            self.timesteps = torch.tensor(values, dtype=torch.int64, device=device)
        elif num_inference_steps is None:
            raise ValueError("set_timesteps wants num_inference_steps or timesteps; this scheduler holds no list")
        else:
            super().set_timesteps(num_inference_steps, device)
            # "trailing" gives one timestep too many for some numbers of steps, -1; and as many steps as the schedule is
            # long, moved up by steps_offset, would leave it.
            self.timesteps = self.timesteps[:num_inference_steps]
            beyond = int(self.timesteps.max()) - (self.config.num_train_timesteps - 1)
            self.timesteps = self.timesteps - max(beyond, 0)
        process = process_of(self)
        self._levels = [process.level(t) for t in self.timesteps.tolist()]
        self._history: tuple[Moment, ...] = ()
        self._step_index: int | None = None
        self._begin_index: int | None = None

    def without_list(self) -> "FixedTimestepsScheduler":
        """The same noise schedule and prediction type, for as many steps of DDIM as a run asks for."""
        config = {name: value for name, value in self.config.items() if name not in _OWN}
        made: FixedTimestepsScheduler = type(self).from_config(config)
        return made

    @property
    def step_index(self) -> int | None:
        """Position in `timesteps` of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this position of the list; for pipelines that begin from a noised image."""
        self._begin_index = begin_index

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Any, ...]:
        """One DDIM step from the present position to the next one in the list.

        Arguments and result are those of `DDIMScheduler.step`, but eta 0 stands for the configured one; `timestep` is
        only looked at on the first step of a run, to find where in the list it begins.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        if self._step_index is None:
            self._step_index = self._first_position(int(timestep))
        position, self._step_index = self._step_index, self._step_index + 1
        level = self._levels[position]
        next_level = self._levels[position + 1] if position + 1 < len(self._levels) else CLEAN

        prediction = predict(model_output, sample, level, self.config.prediction_type)
        prediction = self._limit(prediction, sample, level, use_clipped_model_output)
        eta = eta or self.config.eta
        rows = self.config.coefficients
        if rows is not None:
            if eta > 0:
                raise ValueError(f"eta must be 0 where the steps have fitted coefficients, got {eta}")
            moment = Moment(Step(int(self.timesteps[position])), level, sample, prediction)
            self._history = (*self._history, moment)[-MAX_ORDER:]
            prev_sample = Fitted().advance(self._history, next_level, coefficients=rows[position])
        else:
            prev_sample = ddim_step(
                prediction, level, next_level, eta=eta, generator=generator, variance_noise=variance_noise
            )
        if not return_dict:
            return (prev_sample, prediction.pred_original_sample)
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=prediction.pred_original_sample)

    def _first_position(self, timestep: int) -> int:
        if self._begin_index is not None:
            return self._begin_index
        values = self.timesteps.tolist()
        if timestep not in values:
            raise ValueError(f"timestep {timestep} is not in the list {values}")
        return int(values.index(timestep))

    def _limit(self, prediction: Prediction, sample: Tensor, level: Level, recompute_epsilon: bool) -> Prediction:
        """Thresholding or clipping of x_0, as DDIMScheduler does it; off by default."""
        x0 = prediction.pred_original_sample
        if self.config.thresholding:
            x0 = self._threshold_sample(x0)
        elif self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        else:
            return prediction
        return (
            predict(x0, sample, level, "sample") if recompute_epsilon else prediction._replace(pred_original_sample=x0)
        )
