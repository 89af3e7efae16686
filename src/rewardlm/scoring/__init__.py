"""Judges at work: by name to a ``Scorer``, text in, ``Verdict`` out; and who taught whom."""
