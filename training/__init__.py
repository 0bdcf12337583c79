"""From labelled texts to a model archive: splits, ULMFiT's three stages, evaluation, export, archive.

ULMFiT: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018.
`python -m training --help` is the way in.
"""
