"""One page about a compression, made from run folders alone: no torch, no model, no network."""
