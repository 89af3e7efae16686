"""Policies: loading, adapters, sampling and log-probabilities."""
