"""What a run labels, frozen before it begins: images cut into shards, their own prompts, the config's fingerprint."""
