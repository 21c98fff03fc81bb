"""Local training: what happens at the clients between receiving rows and sending updates."""
