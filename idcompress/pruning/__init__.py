"""Prune methods, one file each.

`candidates(components, request, *, parameters) -> list[Cut]`, the whole model first and then ever smaller ones;
`apply(components, cut) -> replaced components`; `words(components, cut) -> str`, how people name it; `SOURCE`; `NEEDS`,
what of "batches" and "loss" it asks the request for (nothing where it is left out). A method whose candidates are
depths has `chosen(depth) -> Cut` for the key depth=, and `levels(components) -> int`, the depth of all that is there.
"""
