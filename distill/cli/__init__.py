"""The command line. Each command has a file, and `main` ties them together. Stages do not depend on it."""
