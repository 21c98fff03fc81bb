"""Looking vectors up over HTTP, and learning on from interactions as they come in."""
