"""What a run asks: the prompts of single images, and exemplars, which are frozen."""
