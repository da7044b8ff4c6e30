"""The training loop (plain PyTorch) and the thin module that runs it under Ray Train."""
