"""People label a sample of answers, and every share and change is corrected by what they say."""
