"""The stages of distillation: thin files that tie settings to the domain modules. Nothing knows *how* here."""
