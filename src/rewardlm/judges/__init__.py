"""Judges of one's own: trained, calibrated, evaluated, and the one that the project ships."""
