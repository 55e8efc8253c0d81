"""Examples and pipelines in, images and numbers out: what stages, studies and scripts measure with, free of any Config.

`bench` runs plans over examples and keeps references, `thresholds` judges, `comparison` pairs and prices plans.
"""
