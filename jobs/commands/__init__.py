"""The commands of the console script: one module each, with its `Settings` (the flags) and `run`."""
