"""Prune methods, one file each.

`candidates(components, request, *, parameters) -> list[Cut]`, the whole model first and then ever smaller ones;
`apply(components, cut) -> replaced components`; `words(components, cut) -> str`, how people name it; `SOURCE`.
A method that can be told what to keep has `chosen(depth) -> Cut` for the key depth=.
"""
