"""What is on disk: checkpoints, trained models, grids; each file whole or not at all."""
