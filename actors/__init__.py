"""Where labelling runs: the predictor that joins network and data, Ray replicas, the pool. Never imports prefect."""
