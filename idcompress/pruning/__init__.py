"""Prune methods, one file each.

`candidates(components, request, *, parameters) -> list[Cut]`, the whole model first and then ever smaller ones;
`apply(components, cut) -> replaced components`; `words(components, cut) -> str`, how people name it; `SOURCE`; `NEEDS`,
what of "batches" and "loss" it asks the request for (nothing where it is left out), or `needs(*, parameters)`.

- A method whose candidates are depths has `chosen(depth) -> Cut` for the key depth=, and `levels(components) -> int`,
  the depth of all that is there.
- One whose parameters settle the cut says `SEARCHES = False`: the last candidate is taken, whatever it is worth. Where
  they alone name it, `given(*, parameters) -> Cut` does so for every command.
- One that computes weights on calibration images has `is_calibrated(cut)` and `calibrate(components, replaced, cut,
  request)`, which sets them in place and returns the names of these components. They are stored beside the recipe.
- One that changes a few layers only has `ends(components) -> ["component.module", ...]`, which of a cut pipeline's have
  other inputs than before. Fine-tuning can then leave the others alone; else all layers count as changed.
- One that knows which hidden states of a cut and a whole model correspond has `matched_features(components, cut) ->
  {name in the cut U-Net: name in the whole one}`. Distillation finds them by itself for cuts by depth.
"""
