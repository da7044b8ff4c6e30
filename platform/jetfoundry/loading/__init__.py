"""Shards to batches of a training worker: order, draw, micro-batches, two feeds, mid-epoch resume."""
