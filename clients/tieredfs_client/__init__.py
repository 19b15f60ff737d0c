"""Front ends that a training script imports: checkpoints, datasets, fsspec."""
