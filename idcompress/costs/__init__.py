"""What networks cost: parameters, multiply-accumulates, memory and time. Costs are of networks, metrics of images."""
