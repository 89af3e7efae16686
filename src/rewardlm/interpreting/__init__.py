"""What changed inside a tuned model: what it reads, what it writes, and which directions carry toxicity."""
