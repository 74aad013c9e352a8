"""Reading and sampling from language models."""
