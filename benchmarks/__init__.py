"""Measurements of this server and of other servers, side by side: `make bench`."""
