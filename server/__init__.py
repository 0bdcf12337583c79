"""Runs TorchServe in the foreground: a start that is checked, a stop that answers what is in flight."""
