"""``rewardlm judge serve``: judges behind HTTP, in the formats of Perspective, OpenAI's moderation and others."""
