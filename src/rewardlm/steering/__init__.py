"""Models that are changed while they decode, and not trained: what training has to beat."""
