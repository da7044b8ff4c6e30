"""Downstream tasks on a frozen backbone: embedding cache, probes, the Tune fan-out."""
