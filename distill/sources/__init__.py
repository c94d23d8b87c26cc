"""Where problems and published traces come from: files, data sets, families, puzzles."""
