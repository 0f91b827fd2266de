"""Plan a run: freeze, before it begins, the images in shards, their own prompts and the config's fingerprint."""
