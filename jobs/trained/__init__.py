"""Trained models: where they are, how they are loaded, their backbone and their budget."""
