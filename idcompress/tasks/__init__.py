"""Tasks, one file each with a class `Task`: what is translated into what, and how the network is conditioned."""
