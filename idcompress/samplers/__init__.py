"""Samplers, one file each: SAMPLER, whose `advance` moves a sample to the next level (core/sample.py), and SOURCE."""
