"""Timestep strategies, one file each.

`timesteps(request, *, parameters) -> Schedule`; `NEEDS`, what of "score", "better", "teacher" and "denoiser" it asks
the request for (nothing where it is left out); `check_process` and `check_sampler`, which refuse what it cannot serve;
`SOURCE`, what to cite; `CITATION`, its BibTeX where the report should have it beside the compression's own.
"""
