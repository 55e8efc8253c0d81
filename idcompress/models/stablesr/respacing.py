"""The timesteps that StableSR's sampler visits.

Its ancestral sampler over respaced timesteps (posterior mean and variance of the schedule re-derived for the kept
steps) is DDIM with eta = 1 over the same list, so `idcompress.core.ddim` does the sampling.
"""


def respaced_timesteps(num_inference_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """Spread timesteps evenly from 0 to the last one, as the published code does.

    Args:
        num_inference_steps: 1 .. num_train_timesteps; 1 gives [0], which no sampler can start from noise with.

    Returns:
        ascending timesteps; samplers visit them from the end.

    Source: respacing of the published code: a running float sum of the stride, rounded half to even. `linspace` differs
    from it for 278 lengths.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(f"num_inference_steps must be in 1 .. {num_train_timesteps}, got {num_inference_steps}")
    stride = (num_train_timesteps - 1) / max(num_inference_steps - 1, 1)
    timesteps, position = [], 0.0
    for _ in range(num_inference_steps):
        timesteps.append(round(position))
        position += stride
    return timesteps
