"""The stages of distillation: thin files that connect settings to the domain modules, which do the work."""
