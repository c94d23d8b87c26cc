"""The stages that refine a student: thin files over the modules of `rl`."""
