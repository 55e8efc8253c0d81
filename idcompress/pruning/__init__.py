"""Prune methods, one file each: `levels(components)` and `apply(components, depth) -> replaced components`."""
