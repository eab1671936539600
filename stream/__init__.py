"""The stream worker: interactions in, deduplicated training batches out, exactly once."""
