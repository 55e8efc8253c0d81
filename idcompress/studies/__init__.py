"""The paper's studies, one a file: `run(config, recipe, run_dir, *, parameters) -> Study`, and its SOURCE."""
