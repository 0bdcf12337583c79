"""The command `fit`: a classifier of a user's labelled texts."""
