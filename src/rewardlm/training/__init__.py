"""Counter-narrative fine-tuning and reinforcement learning from automatic feedback."""
