"""Pictures and captions to a dataset of shards; `run.prepare` is the whole of it."""
