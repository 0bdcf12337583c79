"""Training: from labelled texts to an exported model and its archive, with the three stages of ULMFiT.

Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018. The command line is
`python -m training --help`.

Imports go in one direction only (`tests/training/test_layers.py`): modules of this folder that hold data and settings,
then `measure`, `stages`, `export`, then the pipelines (`fit`, `pipeline`, `cross_validation`), then `cli`.
"""
