"""What a job would do, from looking alone: `dry_run=true` starts no Ray, reads no jets and writes nothing."""
