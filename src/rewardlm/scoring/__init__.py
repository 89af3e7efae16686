"""Judges at work: a name becomes a ``Scorer``, which gives each text a ``Verdict``; and who taught whom."""
