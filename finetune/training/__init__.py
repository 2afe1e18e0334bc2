"""Shared by the fine-tuning methods: options, training, selection on val, hyper-parameter search."""
