"""Trains a sharded DLRM on the batches topic without end, and publishes versions of it."""
