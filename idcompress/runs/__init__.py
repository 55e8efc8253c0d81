"""The files that stages hand on: recipes, traces, run folders. No torch here."""
