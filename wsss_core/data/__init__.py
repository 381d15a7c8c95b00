"""Where images, image-level labels and (for evaluation alone) masks come from: one module per source."""
