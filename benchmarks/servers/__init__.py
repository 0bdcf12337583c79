"""The other servers."""
