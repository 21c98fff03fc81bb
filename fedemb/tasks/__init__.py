"""What is learnt: one file per family of embeddings."""
