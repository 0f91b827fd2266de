"""Distributes shards over replicas, on Ray or in this process, with retries. Knows nothing about models."""
