"""ROOT and Parquet files to shards: read, check, mix, split, write, verify."""
