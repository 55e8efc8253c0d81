"""Samplers, one file each.

`SAMPLER`, whose `advance` moves a sample to the next level (core/sample.py); `SOURCE`, what to cite; `CITATION`, its
BibTeX where the report should have it.
"""
