"""Training: the settings and the loop of one network, Ray Train workers, evaluation, and whole trade-off curves."""
