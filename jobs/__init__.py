"""What a user runs: the command line, Ray clusters, training, sweeps, closed-loop inference and MLflow."""
