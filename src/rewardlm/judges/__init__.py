"""Makes judges and finds out what they are worth: trains, calibrates, evaluates, lists; and the weights that ship."""
