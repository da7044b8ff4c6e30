"""Networks, their checkpoints and their export. Plain PyTorch: nothing here imports Ray."""
