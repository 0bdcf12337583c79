"""The stages of training, each of which writes a folder of the run."""
