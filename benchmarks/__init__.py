"""What is timed, each thing against its peer in the same process: `python -m benchmarks.<name>`."""
