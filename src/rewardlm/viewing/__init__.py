"""``rewardlm view``: a page on this machine that follows runs and opens finished ones. It only reads."""
