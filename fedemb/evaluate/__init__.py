"""How good a model is: one file per kind of question."""
