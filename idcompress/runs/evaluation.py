"""Names in an evaluation's metrics.json, for those who write it and those who read it."""

SYSTEMS = ("original", "compressed", "uniform")
# Rows that are costs of the networks; every other row is a quality of the images.
COSTS = (
    *("params", "params_paper", "weights_mb", "gmacs", "gmacs_with_attention"),
    *("num_inference_steps", "network_calls", "latency_ms"),
)
