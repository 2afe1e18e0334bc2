"""What fine-tuning methods share: options, training, selection on val, hyper-parameter search."""
