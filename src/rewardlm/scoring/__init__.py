"""Judges: anything that turns a text into P(toxic)."""
