"""The documentation: pages, and the programs that make their generated parts and the site."""
