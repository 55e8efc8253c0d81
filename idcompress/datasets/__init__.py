"""Data sets, one file each, by name: `load(path, split, **options)` lists one as a PhotographSet."""
