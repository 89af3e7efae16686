"""RewardLM: make a chat model less toxic, and prove that it became so."""
