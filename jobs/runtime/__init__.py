"""What commands run on: the command line, Ray clusters, MLflow and the terminal."""
