"""One file per pass: every rewrite of a model that a recipe can name."""
