"""Models that diffusers does not have, embedded ones (tiny), and the shapes of published ones (official)."""
