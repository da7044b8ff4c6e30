"""ROOT and Parquet to shards, shards to batches."""
