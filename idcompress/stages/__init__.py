"""Stages, one subcommand each: `run(config, recipes, run_dir) -> recipes`; the first docstring line is its help."""
