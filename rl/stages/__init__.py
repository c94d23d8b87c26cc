"""The stages of refining: thin files over the modules of `rl`."""
