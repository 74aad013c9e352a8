"""What leaves the runs folder: exports, model cards, uploads."""
