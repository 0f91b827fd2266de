"""What labels shards: replicas on Ray or one in this process, from the same queue. Knows nothing of models."""
