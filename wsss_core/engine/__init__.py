"""The one training loop, its optimisers and schedules, checkpoints and saved models."""
