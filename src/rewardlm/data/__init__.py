"""What models are asked and taught: prompts, dialogues, and the chat format that turns both into tokens."""
