"""Runs the model over shards: the predictor, the replicas that hold it, and the pool of replicas. No prefect."""
