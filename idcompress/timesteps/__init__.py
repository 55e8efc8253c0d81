"""Timestep strategies, one file each: `timesteps(request, *, parameters) -> Schedule`, and `SOURCE`, what to cite."""
