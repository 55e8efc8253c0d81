"""Where weights come from: found (folder, hub, embedded), verified, loaded, and cut as a recipe says."""
