"""Frames become CNN features, features become Parquet shards, shards become padded batches; runs without Ray."""
