"""The command line. Each command is a file; `main` ties them together. Stages know nothing of it."""
