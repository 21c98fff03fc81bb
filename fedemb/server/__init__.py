"""What the server does between a total and the next round."""
